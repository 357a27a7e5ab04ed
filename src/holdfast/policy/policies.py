"""What may differ between a file and a live object, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec

from holdfast.errors import ArgumentError

Resize = Literal["pad", "crop", "fit"]
"""``pad``: the live tensor is larger, the rest of it stays as the model made it. ``crop``: the live tensor is smaller
and takes the leading part. ``fit``: either, dimension by dimension."""


class Exact(msgspec.Struct, frozen=True):
    """The default policy: every key and every shape must agree.

    Wrapper prefixes (DataParallel, DistributedDataParallel, torch.compile) are understood on both sides. Casts that
    keep every value (float16 into float32) are made and reported; casts that lose some are refused.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> saved = holdfast.save(net, "net.pt")
        >>> holdfast.restore("net.pt", model=net, match=holdfast.Exact()).is_exact
        True
    """


class Warm(msgspec.Struct, frozen=True, kw_only=True):
    """A warm start: loads what fits, says what does not, and refuses when too little fits.

    Names of the file are changed in this order: ``strip_prefix``, ``add_prefix``, ``rename``; then ``drop`` is asked.

    Args:
        rename: regular expression -> replacement, as ``re.sub`` takes them, applied one after the other.
        drop: shell-style patterns of names to leave out, as the file or the object calls them.
        strip_prefix: leading segments to take off names that have them, ``"backbone"`` or ``"module.encoder"``.
        add_prefix: leading segments to put before every name.
        resize: pattern of the object's names -> ``"pad"``, ``"crop"`` or ``"fit"``, for tensors of other sizes.
        min_coverage: share of the object's elements that must be loaded, 0 to 1; no match at all is always an error.
        cast: whether dtypes may lose precision (float32 into float16). Values that would become infinite, fractions
            that would be cut off and imaginary parts that would be lost are refused; ``"any"`` allows these too.

    Raises:
        ArgumentError: an expression or pattern that is none, or a coverage outside 0 to 1.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"backbone.weight": torch.ones(1, 2)}, "old.pt")
        >>> net = torch.nn.Linear(2, 1)
        >>> report = holdfast.restore("old.pt", model=net, match=holdfast.Warm(strip_prefix="backbone"))
        >>> report.loaded, report.missing
        (['model.weight'], ['model.bias'])
    """

    rename: Mapping[str, str] = {}
    drop: Sequence[str] = ()
    strip_prefix: str | None = None
    add_prefix: str | None = None
    resize: Mapping[str, Resize] = {}
    min_coverage: float = 0.5
    cast: bool | Literal["any"] = True

    def __post_init__(self) -> None:
        for pattern, replacement in self.rename.items():
            try:
                re.sub(pattern, replacement, "")
            except (re.error, IndexError) as reason:
                raise ArgumentError(f"Warm: rename {pattern!r} -> {replacement!r}: {reason}") from None
        if isinstance(self.drop, str):
            raise ArgumentError(f"Warm: drop takes a list of patterns; write drop=[{self.drop!r}]")
        for pattern, way in self.resize.items():
            if way not in get_args(Resize):
                raise ArgumentError(f"Warm: resize {pattern!r} is {way!r}; it takes {', '.join(get_args(Resize))}")
        if not 0 <= self.min_coverage <= 1:
            raise ArgumentError(f"Warm: min_coverage is {self.min_coverage}; it is a share, 0 to 1")
        if self.cast not in (True, False, "any"):
            raise ArgumentError(f"Warm: cast is {self.cast!r}; it takes True, False or 'any'")


Policy = Exact | Warm
