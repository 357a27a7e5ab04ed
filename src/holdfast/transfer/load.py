"""One load from end to end: a file to a tree."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from holdfast.errors import UntrustedType
from holdfast.formats.writing import shown_name
from holdfast.runs.opening import open_any
from holdfast.serialization.devices import MapLocation, Placement
from holdfast.serialization.reading import read_tree
from holdfast.transfer.rescue import untrusted


def load_tree(f: Any, map_location: MapLocation = None, *, trusted: Collection[str] = (), opaque: bool = False) -> Any:
    """Loads the whole tree of a file; see ``holdfast.load``."""
    placement = Placement(map_location)
    with open_any(f) as container:
        tree = container.document().tree
        try:
            return read_tree(tree, shown_name(f), placement=placement, trusted=frozenset(trusted), opaque=opaque)
        except UntrustedType as first:
            raise untrusted(tree, shown_name(f), trusted) or first from None
