"""An inert tree as JSON and back: the ``state.json`` of a checkpoint and the record in a single file.

Dicts and lists are themselves. All else is an object with one key that begins with ``$``: ``{"$tuple": [1, 2]}``,
``{"$float": "nan"}``, ``{"$tensor": "fc.weight"}``. A dict that has such a key itself, is written as
``{"$dict": [[key, value], ...]}``. The file is hostile until decoded: depth and types are checked here.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.errors import CorruptFile
from holdfast.state.paths import printable
from holdfast.state.payloads import check_payload
from holdfast.state.values import MAX_DEPTH, Opaque, Tree, Typed

_INT64 = 2**63


def to_json(tree: Tree, leaf: Callable[[Any], Any]) -> Any:
    """An inert tree to what a JSON encoder takes; ``leaf`` turns a tensor leaf into its reference."""
    cls = type(tree)
    if cls is str:
        return tree if tree.isascii() or _encodable(tree) else {"$str": _base64(tree.encode("utf-8", "surrogatepass"))}
    if cls is int:
        return tree if -_INT64 <= tree < _INT64 else {"$int": hex(tree)}
    if cls is float:
        return tree if math.isfinite(tree) else {"$float": str(tree)}
    if tree is None or cls is bool:
        return tree
    if cls is dict:
        if all(key[:1] != "$" and (key.isascii() or _encodable(key)) for key in tree):
            return {key: to_json(item, leaf) for key, item in tree.items()}
        return {"$dict": [[to_json(key, leaf), to_json(item, leaf)] for key, item in tree.items()]}
    if cls is list:
        return [to_json(item, leaf) for item in tree]
    if cls is Typed:
        return {f"${tree.kind}": to_json(tree.payload, leaf)}
    if cls is bytes:
        return {"$bytes": _base64(tree)}
    if cls is complex:
        return {"$complex": [to_json(tree.real, leaf), to_json(tree.imag, leaf)]}
    if cls is Opaque:
        return {"$opaque": [tree.type_name, to_json(tree.args, leaf), to_json(tree.state, leaf)]}
    return {"$tensor": leaf(tree)}


def from_json(value: Any, leaf: Callable[[Any], Any], file: str) -> Tree:
    """What a JSON decoder gave to an inert tree; ``leaf`` turns a tensor reference into a leaf.

    Raises:
        CorruptFile: nesting past the limit, or a marked value that does not decode.
    """
    try:
        return _from_json(value, leaf, file, 0)
    except RecursionError:  # the caller's own stack may be deep already
        raise _too_deep(file) from None
    except (TypeError, ValueError, binascii.Error, UnicodeError) as reason:
        raise CorruptFile(f"`{printable(file)}`: its tree of values is damaged: {reason}", file=file) from None


def is_plain(data: bytes) -> bool:
    """Whether JSON is its own inert tree as it is decoded: no marked value, and too few brackets to be nested too deep.

    A manifest mostly is, and a run may have thousands. Escapes could spell the mark, so there must be none.
    """
    return b"$" not in data and b"\\" not in data and data.count(b"{") + data.count(b"[") < MAX_DEPTH


def _too_deep(file: str) -> CorruptFile:
    return CorruptFile(f"`{printable(file)}`: its tree is nested deeper than {MAX_DEPTH} levels", file=file)


def _from_json(value: Any, leaf: Callable[[Any], Any], file: str, depth: int) -> Tree:
    cls = type(value)
    if cls is not dict and cls is not list:
        return value
    if depth >= MAX_DEPTH:
        raise _too_deep(file)
    if cls is list:
        return [_from_json(item, leaf, file, depth + 1) for item in value]
    if len(value) == 1:
        mark, payload = next(iter(value.items()))
        if mark[:1] == "$":
            return _unmark(mark[1:], payload, leaf, file, depth + 1)
    return {key: _from_json(item, leaf, file, depth + 1) for key, item in value.items()}


def _unmark(kind: str, payload: Any, leaf: Callable[[Any], Any], file: str, depth: int) -> Tree:
    if kind == "tensor":
        return leaf(payload)
    if kind == "float":
        if payload not in ("nan", "inf", "-inf"):
            raise ValueError(f"no float {payload!r:.100}")
        return float(payload)
    if kind == "int":
        return int(payload, 16)
    if kind == "str":
        return base64.b64decode(payload, validate=True).decode("utf-8", "surrogatepass")
    if kind == "bytes":
        return base64.b64decode(payload, validate=True)
    if kind == "complex":
        real, imag = (_from_json(part, leaf, file, depth) for part in payload)
        return complex(real, imag)
    if kind == "opaque":
        type_name, args, state = payload
        if type(type_name) is not str:
            raise TypeError(f"no class name {type_name!r}")
        return Opaque(type_name, _from_json(args, leaf, file, depth), _from_json(state, leaf, file, depth))
    inside = _from_json(payload, leaf, file, depth)
    check_payload(kind, inside)
    if kind == "dict" and all(type(key) is str for key, _ in inside):
        return dict(inside)  # a plain dict whose keys could not stand in JSON as they are
    return Typed(kind, inside)


def dumps(value: Any) -> bytes:
    """JSON bytes, UTF-8, without spaces."""
    return msgspec.json.encode(value)


def loads(data: bytes, file: str) -> Any:
    """Decodes JSON from a file.

    Raises:
        CorruptFile: it is not JSON, or nested past what a decoder survives.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
        raise CorruptFile(f"`{printable(file)}`: is not valid JSON: {reason}", file=file) from None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
