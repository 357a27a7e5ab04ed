"""Plain values whose types live in torch or numpy. Both are imported only when such a value is at hand."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

_NUMPY_KINDS = "biufcSUmM"
"""dtype.kind of arrays whose bytes mean the same everywhere; objects ('O') and records ('V') are left out."""


def numpy_type(cls: type) -> str | None:
    """The family of a numpy scalar type or of a dtype's own class, without importing numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    return next((f"numpy.{name}" for name in ("generic", "dtype") if issubclass(cls, getattr(numpy, name))), None)


def _check_numpy_dtype(dtype: Any) -> None:
    if dtype.kind not in _NUMPY_KINDS:
        raise TypeError(f"its dtype is {dtype}; arrays of objects and of records can't be stored without running code")


def _lower_scalar(value: Any) -> dict[str, Any]:
    _check_numpy_dtype(value.dtype)
    return {"dtype": value.dtype.str, "data": value.tobytes()}


def _lift_scalar(payload: Any) -> Any:
    import numpy

    dtype = _lift_dtype(payload["dtype"])
    if dtype.itemsize == 0:  # an empty string
        return dtype.type()
    return numpy.frombuffer(payload["data"], dtype=dtype, count=1)[0]


def _lower_dtype(value: Any) -> str:
    _check_numpy_dtype(value)
    return str(value.str)


def _lift_dtype(code: Any) -> Any:
    import numpy

    dtype = numpy.dtype(code)
    _check_numpy_dtype(dtype)
    return dtype


def scalar_text(payload: Any) -> str | None:
    """A numpy scalar of a file as text, without numpy; None for dtypes that only numpy can read."""
    try:
        code = _STRUCT_CODES[payload["dtype"][1:]]
        (value,) = struct.unpack(payload["dtype"][0].replace("|", "<") + code, payload["data"])
    except (KeyError, TypeError, IndexError, struct.error):
        return None
    return repr(value)


_STRUCT_CODES = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"} | {
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
"""numpy's dtype codes, without the byte order, as struct has them."""


def _lower_array(value: Any) -> dict[str, Any]:
    _check_numpy_dtype(value.dtype)
    if value.dtype.kind in "biufc" and value.dtype.isnative and value.flags.writeable:
        import torch

        try:  # as a tensor: in the container beside the others, digested in chunks, not inside the JSON
            return {"dtype": value.dtype.str, "tensor": torch.from_numpy(value)}
        except (TypeError, ValueError):  # a dtype or a negative stride that torch lacks
            pass
    return {"dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}


def _lift_array(payload: Any) -> Any:
    import numpy

    if "tensor" in payload:
        return payload["tensor"].cpu().numpy()
    if any(size < 0 for size in payload["shape"]):  # numpy would work the size out itself
        raise ValueError(f"no shape {payload['shape']}")
    return numpy.frombuffer(payload["data"], _lift_dtype(payload["dtype"])).reshape(payload["shape"]).copy()


def _plain_array(payload: Any) -> Any:
    return payload.get("tensor", payload)


def _named(type_name: str) -> Any:
    """Lifts ``float32`` to ``torch.float32``, if that really is a ``type_name``: a file may name anything."""

    def lift(name: Any) -> Any:
        import torch

        found = getattr(torch, name, None)
        if type(found) is not getattr(torch, type_name):
            raise ValueError(f"no torch.{type_name} {name!r}")
        return found

    return lift


def _lift_size(sizes: Any) -> Any:
    import torch

    return torch.Size(sizes)


def _lift_device(name: Any) -> Any:
    import torch

    return torch.device(name)


def _short_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def foreign_kinds(kind: Any) -> Iterator[Any]:
    """The rows for the table in ``kinds``, made with its ``Kind``."""

    def same(payload: Any) -> Any:
        return payload

    yield kind("numpy.scalar", "numpy.generic", _lower_scalar, _lift_scalar, same)
    yield kind("numpy.array", "numpy.ndarray", _lower_array, _lift_array, _plain_array)
    yield kind("numpy.dtype", "numpy.dtype", _lower_dtype, _lift_dtype, same)
    yield kind("torch.Size", "torch.Size", list, _lift_size, tuple)
    yield kind("torch.device", "torch.device", str, _lift_device, same)
    for name in ("dtype", "layout", "memory_format", "qscheme"):
        yield kind(f"torch.{name}", f"torch.{name}", _short_name, _named(name), same)
