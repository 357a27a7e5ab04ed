"""``torch.save`` and ``torch.load`` with their exact signatures and meanings, over holdfast's own readers and writers.

``torch.save, torch.load = compat.save, compat.load`` is a working program. What changes is what goes wrong elsewhere: a
save that fails leaves the old file as it was, a write that is cut short is an error, and a flipped byte is noticed on
loading. Errors are those of torch, since programs catch them by type and text.

``weights_only=False`` is the one place where a pickle runs: the caller asked for it by that name.
"""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable
from typing import IO, Any, TypeVar

import torch

from holdfast.compat.reading import load_object
from holdfast.compat.writing import save_object

__all__ = ["load", "save"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _signature_of(original: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Shows the signature of this torch, annotations and all, where tools ask for it."""

    def decorate(function: _Function) -> _Function:
        vars(function)["__signature__"] = inspect.signature(original)
        return function

    return decorate


@_signature_of(torch.serialization.save)
def save(
    obj: object,
    f: str | os.PathLike[str] | IO[bytes],
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
) -> None:
    """Saves an object as ``torch.save`` does; a file is replaced when all of it is on disk, and not before.

    Args:
        obj: anything that can be pickled.
        f: a path whose folder exists, or an object with ``write`` and ``flush``.
        pickle_module: pickles the object; needs a ``Pickler`` class.
        pickle_protocol: 2 is the one that ``weights_only=True`` reads.
        _use_new_zipfile_serialization: False writes the stream of torch < 1.6.
        _disable_byteorder_record: leaves out the record that names the byte order.

    Raises:
        RuntimeError: the folder is missing, the disk is full, or storages are viewed under two dtypes.
        AttributeError: ``f`` has no ``write``.

    Example:
        >>> import torch
        >>> from holdfast import compat
        >>> compat.save({"w": torch.ones(2)}, "w.pt")
        >>> torch.load("w.pt")["w"]
        tensor([1., 1.])
    """
    save_object(
        obj,
        f,
        pickle_module=pickle_module,
        protocol=pickle_protocol,
        zipped=_use_new_zipfile_serialization,
        byte_order=not _disable_byteorder_record,
    )


@_signature_of(torch.serialization.load)
def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **pickle_load_args: Any,
) -> Any:
    """Loads an object that ``torch.save`` of any version, or :func:`save`, wrote.

    Args:
        f: a path, or an object with ``read``, ``seek`` and ``tell``, read from its position on.
        map_location: None, a device or its name, a dict from saved to wanted locations, or a callable
            (storage, location) -> storage or None.
        pickle_module: unpickles the object, with ``weights_only=False`` only.
        weights_only: whether only tensors, plain values and ``torch.serialization.add_safe_globals`` are allowed; True
            by default. False runs the pickle.
        mmap: whether tensors share the pages of the file instead of copies of them.
        **pickle_load_args: for ``pickle_module.Unpickler``; ``encoding`` is for strings of Python 2.

    Returns:
        The object.

    Raises:
        pickle.UnpicklingError: ``weights_only`` refuses what the file holds, or it is no file of torch.
        EOFError: there is nothing (more) to read.
        RuntimeError: the file is damaged, or the arguments contradict each other.
        FileNotFoundError: there is no such file.

    Example:
        >>> from holdfast import compat
        >>> import torch
        >>> torch.save([torch.ones(2)], "list.pt")
        >>> compat.load("list.pt", map_location="cpu")
        [tensor([1., 1.])]
    """
    return load_object(
        f,
        map_location,
        pickle_module=pickle_module,
        weights_only=weights_only,
        mmap=mmap,
        pickle_load_args=pickle_load_args,
    )
