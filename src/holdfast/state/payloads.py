"""What the payload of each kind is made of: what a file says is checked once, before anything walks or writes it.

Only the shape is checked. Whether a text is a date, or a tensor's offsets lie inside it, is seen when a live value is
made of it.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.state.values import ATOMS, DRESSED, TENSOR_KINDS, Opaque, Tree, Typed

_Check = Callable[[Tree], bool]


def check_payload(kind: str, payload: Tree) -> None:
    """Raises TypeError unless a payload of a file is made of what its kind is made of; unknown kinds pass."""
    check = _CHECKS.get(kind)
    if check is not None and not check(payload):
        raise TypeError(f"a {kind} has other parts than it should: {payload!r:.60}")


def _is(*types: type) -> _Check:
    return lambda tree: type(tree) in types


_text, _number, _truth, _list = _is(str), _is(int), _is(bool), _is(list)


def _any(tree: Tree) -> bool:
    return True


def _leaf(tree: Tree) -> bool:
    cls = type(tree)
    return not (cls in ATOMS or cls in (dict, list, Typed, Opaque))


def _tensor(tree: Tree) -> bool:
    return _leaf(tree) or (type(tree) is Typed and (tree.kind in TENSOR_KINDS or tree.kind in DRESSED))


def _numbers(tree: Tree) -> bool:
    return type(tree) is list and all(type(item) is int for item in tree)


def _pairs(tree: Tree) -> bool:
    return type(tree) is list and all(type(pair) is list and len(pair) == 2 for pair in tree)


def _items(tree: Tree) -> bool:
    return type(tree) is dict or _pairs(tree)


def _three(tree: Tree) -> bool:
    return type(tree) is list and len(tree) == 3


def _or_none(check: _Check) -> _Check:
    return lambda tree: tree is None or check(tree)


def _parts(**checks: _Check) -> _Check:
    """A dict that has these parts; it may have others."""
    wanted = tuple(checks.items())

    def fits(tree: Tree) -> bool:
        return type(tree) is dict and all(name in tree and check(tree[name]) for name, check in wanted)

    return fits


_GRADED = {"requires_grad": _truth}
_SPARSE = _parts(layout=_text, size=_numbers, values=_leaf)
_COO = _parts(indices=_leaf, coalesced=_truth)
_COMPRESSED = _parts(compressed=_leaf, plain=_leaf)
_INTEGERS, _PACKED = _parts(scheme=_text, data=_leaf), _parts(packed=_text, shape=_numbers)
_PER_TENSOR = _parts(scale=_is(float), zero_point=_number)
_PER_CHANNEL = _parts(scales=_leaf, zero_points=_leaf, axis=_number)
_ARRAY, _IN_TENSOR = _parts(dtype=_text, shape=_numbers, data=_is(bytes)), _parts(dtype=_text, tensor=_leaf)


def _sparse(tree: Tree) -> bool:
    return _SPARSE(tree) and (_COO if tree["layout"] == "sparse_coo" else _COMPRESSED)(tree)


def _quantized(tree: Tree) -> bool:
    if not _INTEGERS(tree) or ("packed" in tree and not _PACKED(tree)):
        return False
    return _PER_TENSOR(tree) if tree["scheme"] == "per_tensor_affine" else _PER_CHANNEL(tree)


_CHECKS: dict[str, _Check] = {
    "tuple": _list,
    "set": _list,
    "frozenset": _list,
    "dict": _pairs,
    "ordered_dict": _pairs,
    "counter": _pairs,
    "defaultdict": _parts(items=_items),
    "state_dict": _parts(items=_items, metadata=_pairs),
    "deque": _parts(items=_list, maxlen=_or_none(_number)),
    "bytearray": _is(bytes),
    "namespace": _is(dict),
    "record": _parts(**{"class": _text, "form": _text, "fields": _is(dict)}),
    "datetime": _parts(iso=_text, fold=_number),
    "timedelta": lambda tree: _numbers(tree) and _three(tree),
    "fraction": lambda tree: _numbers(tree) and len(tree) == 2,
    "slice": _three,
    "range": lambda tree: _numbers(tree) and _three(tree),
    "torch.Size": _numbers,
    "torch.storage": _parts(dtype=_or_none(_text), data=_leaf),
    "numpy.scalar": _parts(dtype=_text, data=_is(bytes)),
    "numpy.array": lambda tree: _ARRAY(tree) or _IN_TENSOR(tree),
    "parameter": _parts(data=_tensor, **_GRADED),
    "attributed": _parts(data=_tensor, state=_any),
    "subclass": _parts(**{"class": _text, "data": _tensor, "state": _any}),
    "wrapper": _parts(**{"class": _text, "state": _any}, dtype=_text, shape=_numbers, stride=_numbers, **_GRADED),
    "conj": _tensor,
    "neg": _tensor,
    "sparse": _sparse,
    "quantized": _quantized,
    "meta": _parts(dtype=_text, shape=_numbers, stride=_numbers, **_GRADED),
    "nested": _parts(data=_leaf, sizes=_leaf, strides=_leaf, offsets=_leaf),
    "jagged": _parts(data=_leaf, offsets=_leaf, lengths=_or_none(_leaf), dimension=_number, **_GRADED),
}
_TEXTS = ("path", "PurePosixPath", "PureWindowsPath", "date", "time", "decimal", "numpy.dtype", "torch.device")
_CHECKS |= dict.fromkeys((*_TEXTS, "torch.dtype", "torch.layout", "torch.memory_format", "torch.qscheme"), _text)
