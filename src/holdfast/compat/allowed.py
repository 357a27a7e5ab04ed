"""What ``weights_only=True`` may name: a table of torch 2.13, and what the program added.

Source: ``torch/_weights_only_unpickler.py``. A test compares the table with that of the installed torch.
"""

from __future__ import annotations

import codecs
import collections
import functools
from typing import Any

import torch

from holdfast.compat.untyped import untyped

BLOCKED_MODULES = frozenset({"sys", "os", "posix", "nt"})
"""Never allowed, not even when a program adds something out of them."""

_REBUILD = (
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_sparse_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_nested_tensor",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
)
_SCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)


@functools.lru_cache(maxsize=1)
def allowed_globals() -> dict[str, Any]:
    """Full name -> what it means, for every program."""
    found: dict[str, Any] = {
        "collections.OrderedDict": collections.OrderedDict,
        "collections.Counter": collections.Counter,
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.serialization._get_layout": torch.serialization._get_layout,
        "torch.Size": torch.Size,
        "torch.Tensor": torch.Tensor,
        "torch.device": torch.device,
        "torch._tensor._rebuild_from_type_v2": torch._tensor._rebuild_from_type_v2,
        "_codecs.encode": codecs.encode,
        "builtins.bytearray": bytearray,
        "builtins.set": set,
        "builtins.complex": complex,
    }
    found |= {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    found |= {f"torch.{name}": getattr(torch, name) for name in _SCHEMES}
    found |= {f"torch._utils.{name}": getattr(torch._utils, name) for name in _REBUILD if hasattr(torch._utils, name)}
    for cls in torch._tensor_classes:
        found[f"{cls.__module__}.{cls.__name__}"] = cls
    for cls in untyped._storage_classes:
        is_itself = cls in (torch.storage.TypedStorage, torch.storage.UntypedStorage)
        meaning = cls if is_itself else untyped.serialization.StorageType(cls.__name__)
        found[f"{cls.__module__}.{cls.__name__}"] = meaning
    return found


def added_globals() -> dict[str, Any]:
    """Full name -> what the program gave to ``torch.serialization.add_safe_globals``."""
    found: dict[str, Any] = {}
    for item in torch.serialization.get_safe_globals():
        if not isinstance(item, tuple):
            found[f"{item.__module__}.{item.__qualname__}"] = item
            continue
        if len(item) != 2:
            raise ValueError(
                f"Expected tuple of length 2 (global, str of callable full path), but got tuple of length: {len(item)}"
            )
        value, name = item
        if type(name) is not str:
            raise TypeError(f"Expected second item in tuple to be str of callable full path, but got: {type(name)}")
        found[name] = value
    return found
