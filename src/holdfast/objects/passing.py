"""Passing over items that were done: a sampler that leaves them out, and how to tell an item again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
import xxhash

from holdfast.errors import MismatchError
from holdfast.objects.stateful import class_name

_ELEMENTS, _PARTS = 1024, 32
"""So many elements of a tensor and parts of a batch tell it from another: all of them would take too long."""


class SkippingSampler:
    """A sampler whose first pass leaves out the first ``count`` items.

    Nothing is drawn before the first item is asked for or ``prime`` is called, as with the sampler inside: the loader
    draws a seed of its own in between.
    """

    def __init__(self, inner: Any, count: int, before: Callable[[], None]) -> None:
        self._inner = inner
        self._count = count
        self._before: Callable[[], None] | None = before
        self._latest: _Pass | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)  # batch_size, drop_last and whatever a program looks at

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        self._latest = _Pass(self)
        return self._latest

    def prime(self) -> None:
        """Draws the order now, unless the loader has asked for an item already."""
        if self._latest is not None and self._before is not None:
            self._latest.begin()

    def start(self) -> Iterator[Any]:
        """The inner iterator, past the items to leave out; only the first pass leaves any out."""
        count, before = self._count, self._before
        self._count, self._before = 0, None
        if before is not None:
            before()
        iterator: Iterator[Any] = iter(self._inner)
        pass_over(iterator, count)
        return iterator


class _Pass:
    def __init__(self, sampler: SkippingSampler) -> None:
        self._sampler = sampler
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def begin(self) -> Iterator[Any]:
        if self._iterator is None:
            self._iterator = self._sampler.start()
        return self._iterator

    def __next__(self) -> Any:
        return next(self.begin())


_END = object()


def pass_over(iterator: Iterator[Any], count: int) -> None:
    """Draws ``count`` items.

    Raises:
        MismatchError: there are fewer.
    """
    for done in range(count):
        if next(iterator, _END) is _END:
            raise MismatchError(
                f"`loader`: {count} batches of this epoch were done when it was saved, but it ends after {done}: give "
                "the run the same data and batch size",
                path="loader",
            )


class Watched:
    """An iterator that remembers whether it came to its end and, if asked to, what its last item looked like."""

    def __init__(self, iterator: Iterator[Any], *, looking: bool) -> None:
        self._iterator = iterator
        self._looking = looking
        self.seen = ""
        self.over = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            item = next(self._iterator)
        except StopIteration:
            self.over = True
            raise
        if self._looking:
            self.seen = sketch(item)  # now: a program may change its batch in place
        return item


def sketch(item: Any) -> str:
    """A digest of what tells an item from another: the beginning of its arrays, its plain values, its shapes."""
    return _digest("\n".join(_described(item)).encode("utf-8", "surrogatepass"))


def _described(item: Any) -> Iterator[str]:
    numpy = sys.modules.get("numpy")
    if isinstance(item, Mapping):
        for key, value in islice(item.items(), _PARTS):
            yield repr(key)
            yield from _described(value)
    elif isinstance(item, list | tuple):
        yield f"{len(item)}"
        for value in item[:_PARTS]:
            yield from _described(value)
    elif isinstance(item, bool | int | float | complex | str | bytes | None):
        yield repr(item[:_ELEMENTS] if isinstance(item, str | bytes) else item)
    elif isinstance(item, torch.Tensor):
        yield f"{item.dtype} {tuple(item.shape)} {_beginning(item)}"
    elif numpy is not None and isinstance(item, numpy.ndarray) and item.dtype.kind in "biufcSU":
        yield f"{item.dtype} {item.shape} {_digest(item.flat[:_ELEMENTS].tobytes())}"
    else:
        yield class_name(item)


def _beginning(tensor: torch.Tensor) -> str:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        return ""  # to look at it would wait for its device
    first = tensor.detach()
    for dim in range(0 if first.is_contiguous() else first.dim()):  # it would be copied whole to be flattened
        below = max(first.numel() // max(first.shape[dim], 1), 1)
        first = first.narrow(dim, 0, min(first.shape[dim], max(_ELEMENTS // below, 1)))
    plain = first.flatten()[:_ELEMENTS].resolve_conj().resolve_neg().contiguous()
    return _digest(plain.view(torch.uint8).numpy().tobytes())


def _digest(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)
