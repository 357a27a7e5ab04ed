"""What numpy's scalars, arrays and dtypes look like in a pickle."""

from __future__ import annotations

import math

from holdfast.formats.arrays import itemsize, row_major
from holdfast.formats.parts import Form, Parts, items_of
from holdfast.state.values import Opaque, Tree, Typed


def _numpy_dtype(parts: Parts) -> Tree | None:
    """``dtype("f8", False, True)`` with the state (3, "<", None, None, None, -1, -1, 0)."""
    if not 1 <= len(parts.args) <= 3 or type(parts.args[0]) is not str or parts.items or parts.pairs:
        return None
    state = items_of(parts.state) if parts.built else []
    order = state[1] if state and len(state) > 4 else "|"
    code = parts.args[0]
    if state is None or order not in ("<", ">", "|", "=") or code[:1] in "<>|=":
        return None
    if any(part is not None for part in state[2:5]) or itemsize(code) is None:
        return None
    if code[0] in "mM":
        unit = _unit(state)
        return None if unit is None else Typed("numpy.dtype", f"{order}{code}{unit}")
    return Typed("numpy.dtype", f"{'<' if order == '=' else order}{code}")


def _unit(state: list[Tree]) -> str | None:
    """The unit of a datetime64, ``[ns]``: the last part of its state is ``({}, (b"ns", 1, 1, 1))``."""
    last = items_of(state[-1]) if len(state) == 9 else None
    parts = items_of(last[1]) if last and len(last) == 2 else None
    if not parts or len(parts) != 4 or type(parts[0]) not in (bytes, str) or type(parts[1]) is not int:
        return None
    name = str(parts[0], "latin-1") if type(parts[0]) is bytes else str(parts[0])
    return f"[{parts[1] if parts[1] != 1 else ''}{name}]" if name.isalpha() and name != "generic" else None


def _code(tree: Tree) -> str | None:
    return tree.payload if type(tree) is Typed and tree.kind == "numpy.dtype" else None


def _raw(tree: Tree) -> bytes | None:
    """The bytes of an array; Python 2 wrote them as text."""
    if type(tree) is Typed and tree.kind == "bytearray":
        return bytes(tree.payload)
    if type(tree) is str:
        return tree.encode()
    return tree if type(tree) is bytes else None


def _numpy_scalar(parts: Parts) -> Tree | None:
    """``multiarray.scalar(dtype, bytes)``."""
    if not parts.only_args or len(parts.args) != 2:
        return None
    code, data = _code(parts.args[0]), _raw(parts.args[1])
    if code is None or data is None or len(data) != itemsize(code):
        return None
    return Typed("numpy.scalar", {"dtype": code, "data": data})


def _numpy_array(parts: Parts) -> Tree | None:
    """``multiarray._reconstruct(ndarray, (0,), b"b")`` with the state (1, shape, dtype, is_fortran, bytes)."""
    state = items_of(parts.state) if parts.built else None
    cls = parts.args[0] if len(parts.args) == 3 else None
    if type(cls) is not Opaque or cls.type_name != "numpy.ndarray" or state is None or len(state) != 5:
        return None
    return _array(state[2], state[1], _raw(state[4]), fortran=state[3] is True)


def _numpy_frombuffer(parts: Parts) -> Tree | None:
    """``numeric._frombuffer(bytes, dtype, shape, order)``: what protocol 5 writes."""
    if len(parts.args) != 4 or not parts.only_args:
        return None
    data, dtype, shape, order = parts.args
    return _array(dtype, shape, _raw(data), fortran=order == "F") if order in ("C", "F") else None


def _array(dtype: Tree, shape: Tree, data: bytes | None, *, fortran: bool) -> Tree | None:
    code, sizes = _code(dtype), items_of(shape)
    if code is None or sizes is None or data is None or len(sizes) > 64:
        return None
    size = itemsize(code) or 0
    if any(type(length) is not int or length < 0 for length in sizes) or math.prod(sizes) * size != len(data):
        return None
    if fortran:
        data = row_major(data, sizes, size)
    return Typed("numpy.array", {"dtype": code, "shape": sizes, "data": data})


NUMPY_FORMS: dict[str, Form] = {"numpy.dtype": _numpy_dtype}
for _home in ("numpy.core", "numpy._core"):
    NUMPY_FORMS[f"{_home}.multiarray.scalar"] = _numpy_scalar
    NUMPY_FORMS[f"{_home}.multiarray._reconstruct"] = _numpy_array
    NUMPY_FORMS[f"{_home}.numeric._frombuffer"] = _numpy_frombuffer
