"""Files made out of files: rename keys, strip to the weights, extract a part, merge files, average checkpoints; and a
run made out of a folder of old ones.

Nothing here builds a model. Bytes are streamed from file to file, so memory stays small whatever the size; what was
written is read back and compared before it takes its place; a source is never written to. torch is loaded by
``average`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.surgery.adoption.adopting import adopt as adopt
from holdfast.surgery.adoption.report import AdoptReport as AdoptReport
from holdfast.surgery.cutting import extract as extract
from holdfast.surgery.cutting import strip as strip
from holdfast.surgery.merging import merge as merge
from holdfast.surgery.renaming import rename as rename
from holdfast.surgery.report import Rewritten as Rewritten

if TYPE_CHECKING:
    from holdfast.surgery.averaging import average as average

__all__ = ["AdoptReport", "Rewritten", "adopt", "average", "extract", "merge", "rename", "strip"]


def __getattr__(name: str) -> Any:
    if name != "average":
        raise AttributeError(f"module 'holdfast.surgery' has no attribute {name!r}")
    from holdfast.surgery.averaging import average

    return average
