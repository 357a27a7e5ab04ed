"""The table of types that files keep exactly: how each is taken apart and put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.state.foreign import foreign_kinds, numpy_type
from holdfast.state.plain import plain_kinds


class Kind(msgspec.Struct, frozen=True):
    """How one Python type is taken apart and put together.

    Attributes:
        name: what the file calls it.
        type: the exact class, or its full name where the module is one that may be absent (torch, numpy).
        lower: live value -> a payload of simpler live values (lowered further).
        lift: lifted payload -> live value. May raise TypeError, ValueError or LookupError on a payload that lies.
        plain: lifted payload -> the nearest type that ``torch.load(weights_only=True)`` accepts.
    """

    name: str
    type: type | str
    lower: Callable[[Any], Any]
    lift: Callable[[Any], Any]
    plain: Callable[[Any], Any]


KINDS: dict[str, Kind] = {}
_BY_TYPE: dict[type | str, Kind] = {}
for _kind in (*plain_kinds(Kind), *foreign_kinds(Kind)):
    KINDS[_kind.name] = _kind
    _BY_TYPE[_kind.type] = _kind


def kind_of(cls: type) -> Kind | None:
    """How values of exactly this class are taken apart; None for classes of the user's own."""
    found = _BY_TYPE.get(cls)
    if found is None and cls.__module__.partition(".")[0] in ("torch", "numpy"):
        found = _BY_TYPE.get(numpy_type(cls) or f"{cls.__module__}.{cls.__qualname__}")
    return found
