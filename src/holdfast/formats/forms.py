"""What known classes look like in a pickle: each form turns the parts of a call into a value, or says None.

The parts are inert trees already. None means "not as this class pickles itself"; the call then stays opaque, which is
always safe. Only the tensor forms raise, since a tensor that lies would be taken for data.
"""

from __future__ import annotations

import datetime
import decimal

from holdfast.formats.numpyforms import NUMPY_FORMS
from holdfast.formats.parts import Form, Parts, items_of, of_args, pairs_of
from holdfast.formats.tensorforms import TENSOR_FORMS
from holdfast.spec import DTYPES
from holdfast.state.values import Opaque, Tree, Typed

TORCH_NAMES: dict[str, str] = {f"torch.{name}": "torch.dtype" for name in DTYPES}
"""Globals of torch that are values: dtypes and quantization schemes."""
TORCH_NAMES |= {
    f"torch.{name}": "torch.qscheme"
    for name in (
        "per_tensor_affine",
        "per_tensor_symmetric",
        "per_channel_affine",
        "per_channel_symmetric",
        "per_channel_affine_float_qparams",
    )
}
_LAYOUTS = frozenset({"strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "_mkldnn"})
_FACTORIES = ("list", "dict", "int", "float", "str", "set", "tuple", "bool")


# -- containers


def _ordered_dict(parts: Parts) -> Tree | None:
    pairs: list[list[Tree]] | None = list(parts.pairs)
    if len(parts.args) == 1:  # Python 2 gives a list of pairs
        first = pairs_of(parts.args[0])
        pairs = None if first is None else first + parts.pairs
    if len(parts.args) > 1 or parts.items or pairs is None:
        return None
    if not parts.built or parts.state == {}:
        return Typed("ordered_dict", pairs)
    if type(parts.state) is not dict or set(parts.state) != {"_metadata"}:
        return None
    metadata = pairs_of(parts.state["_metadata"])
    if metadata is None:
        return None
    items: Tree = dict(pairs) if all(type(key) is str for key, _ in pairs) else pairs
    return Typed("state_dict", {"items": items, "metadata": metadata})


def _counter(parts: Parts) -> Tree | None:
    pairs = pairs_of(parts.args[0]) if len(parts.args) == 1 else ([] if not parts.args else None)
    return None if pairs is None or parts.built or parts.items else Typed("counter", pairs + parts.pairs)


def _defaultdict(parts: Parts) -> Tree | None:
    factory = parts.args[0] if len(parts.args) == 1 else (None if not parts.args else 0)
    if type(factory) is Opaque and factory.args is None:
        factory = factory.type_name.removeprefix("builtins.")
    if (factory is not None and factory not in _FACTORIES) or parts.built or parts.items:
        return None
    return Typed("defaultdict", {"factory": factory, "items": parts.pairs})


def _deque(parts: Parts) -> Tree | None:
    items: list[Tree] | None = []
    maxlen = None
    if parts.args:
        items = items_of(parts.args[0])
        maxlen = parts.args[1] if len(parts.args) == 2 else None
    if items is None or len(parts.args) > 2 or type(maxlen) not in (int, type(None)) or parts.built or parts.pairs:
        return None
    return Typed("deque", {"items": items + parts.items, "maxlen": maxlen})


def _collection(kind: str) -> Form:
    def form(parts: Parts) -> Tree | None:
        items = items_of(parts.args[0]) if len(parts.args) == 1 else ([] if not parts.args else None)
        return Typed(kind, items) if items is not None and parts.only_args else None

    return form


def _namespace(parts: Parts) -> Tree | None:
    state = {} if not parts.built else parts.state
    return Typed("namespace", state) if type(state) is dict and not (parts.args or parts.items or parts.pairs) else None


# -- plain values


def _bytes(parts: Parts) -> bytes | None:
    """``_codecs.encode(text, "latin1")``, ``bytes()`` and ``bytes([1, 2])``, ``bytes(text, encoding)``."""
    args = parts.args
    if not parts.only_args or len(args) > 2:
        return None
    if not args:
        return b""
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        try:
            return args[0].encode("latin-1")
        except UnicodeEncodeError:
            return None
    if len(args) == 1 and type(args[0]) is bytes:
        return args[0]
    items = items_of(args[0]) if len(args) == 1 else None
    if items is None or not all(type(item) is int and 0 <= item < 256 for item in items):
        return None
    return bytes(items)


def _bytearray(parts: Parts) -> Tree | None:
    data = _bytes(parts)
    return None if data is None else Typed("bytearray", data)


@of_args((int, float), (int, float))
def _complex(real: float, imag: float) -> Tree:
    return complex(real, imag)


def _path(kind: str, pure: str) -> Form:
    def form(parts: Parts) -> Tree | None:
        if not parts.only_args or not all(type(part) is str for part in parts.args):
            return None
        import pathlib

        return Typed(kind, str(getattr(pathlib, pure)(*parts.args)))

    return form


def _of_three(kind: str) -> Form:
    def form(parts: Parts) -> Tree | None:
        fits = parts.only_args and len(parts.args) == 3
        if kind == "range":
            fits = fits and all(type(arg) is int for arg in parts.args) and parts.args[2] != 0
        return Typed(kind, list(parts.args)) if fits else None

    return form


def _fraction(parts: Parts) -> Tree | None:
    """``Fraction(1, 3)``; before Python 3.12 of old, ``Fraction("1/3")``."""
    args = parts.args
    if not parts.only_args or [type(arg) for arg in args] not in ([str], [int, int]):
        return None
    from fractions import Fraction

    try:
        number = Fraction(*args)
    except (ValueError, ZeroDivisionError):
        return None
    return Typed("fraction", [number.numerator, number.denominator])


@of_args(str)
def _decimal(value: str) -> Tree | None:
    try:
        return Typed("decimal", str(decimal.Decimal(value)))
    except decimal.InvalidOperation:
        return None


@of_args(int, int, int)
def _timedelta(days: int, seconds: int, microseconds: int) -> Tree | None:
    try:
        value = datetime.timedelta(days, seconds, microseconds)
    except OverflowError:
        return None
    return Typed("timedelta", [value.days, value.seconds, value.microseconds])


def _datetime(parts: Parts) -> Tree | None:
    """``datetime(ten bytes[, zone])``: year, month with the fold in its top bit, day, time, microseconds."""
    data, zone = (*parts.args, None)[:2] if parts.args else (None, None)
    if not parts.only_args or len(parts.args) > 2 or type(data) is not bytes or len(data) != 10:
        return None
    year, month, day, hour, minute, second = data[0] << 8 | data[1], data[2] & 127, *data[3:7]
    try:
        offset = None if zone is None else datetime.timezone(datetime.timedelta(*_offset(zone)))
        micro = int.from_bytes(data[7:], "big")
        value = datetime.datetime(year, month, day, hour, minute, second, micro, offset)
    except (TypeError, ValueError, OverflowError):
        return None
    return Typed("datetime", {"iso": value.isoformat(), "fold": data[2] >> 7})


def _offset(zone: Tree) -> list[int]:
    """Days, seconds, microseconds of ``datetime.timezone(timedelta(...))``. TypeError for any other zone."""
    if type(zone) is Opaque and zone.type_name == "datetime.timezone" and len(zone.args or ()) == 1:
        delta = zone.args[0]
        if type(delta) is Typed and delta.kind == "timedelta":
            return list(delta.payload)
    raise TypeError


@of_args(bytes)
def _date(data: bytes) -> Tree | None:
    try:
        return Typed("date", datetime.date(data[0] << 8 | data[1], data[2], data[3]).isoformat())
    except (IndexError, ValueError):
        return None


@of_args(bytes)
def _time(data: bytes) -> Tree | None:
    try:
        return Typed(
            "time", datetime.time(data[0] & 127, data[1], data[2], int.from_bytes(data[3:6], "big")).isoformat()
        )
    except (IndexError, ValueError):
        return None


# -- torch


def _size(parts: Parts) -> Tree | None:
    items = items_of(parts.args[0]) if len(parts.args) == 1 and parts.only_args else None
    return None if items is None or any(type(item) is not int for item in items) else Typed("torch.Size", items)


def _device(parts: Parts) -> Tree | None:
    args = parts.args
    if not parts.only_args or not 1 <= len(args) <= 2 or type(args[0]) is not str or not args[0].isprintable():
        return None
    if len(args) == 2:
        return Typed("torch.device", f"{args[0]}:{args[1]}") if type(args[1]) is int else None
    return Typed("torch.device", args[0])


@of_args(str)
def _layout(name: str) -> Tree | None:
    name = name.removeprefix("torch.")
    return Typed("torch.layout", name) if name in _LAYOUTS else None


FORMS: dict[str, Form] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _deque,
    "builtins.set": _collection("set"),
    "builtins.frozenset": _collection("frozenset"),
    "builtins.tuple": _collection("tuple"),
    "builtins.complex": _complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.slice": _of_three("slice"),
    "builtins.range": _of_three("range"),
    "builtins.xrange": _of_three("range"),
    "_codecs.encode": _bytes,
    "argparse.Namespace": _namespace,
    "fractions.Fraction": _fraction,
    "decimal.Decimal": _decimal,
    "datetime.datetime": _datetime,
    "datetime.date": _date,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    **NUMPY_FORMS,
    **TENSOR_FORMS,
}
for _home in ("pathlib", "pathlib._local"):
    FORMS[f"{_home}.PosixPath"] = _path("path", "PurePosixPath")
    FORMS[f"{_home}.WindowsPath"] = _path("path", "PureWindowsPath")
    FORMS[f"{_home}.PurePosixPath"] = _path("PurePosixPath", "PurePosixPath")
    FORMS[f"{_home}.PureWindowsPath"] = _path("PureWindowsPath", "PureWindowsPath")
