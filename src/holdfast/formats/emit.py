"""An inert tree as the pickle that ``torch.load(weights_only=True)`` reads: written opcode by opcode.

No object is pickled, so nothing can end up in the stream but the forms below. A value whose type weights_only refuses
is written as the nearest type that it takes (a deque as a list, a path as a string); its true type stands in our own
record. Protocol 2, the only one that weights_only reads. Opcodes: the table of CPython's ``pickletools``; forms:
``torch/_utils.py`` and ``torch/serialization.py`` of torch 2.13.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from holdfast.errors import UnsupportedValue
from holdfast.formats.arrays import plain_array, plain_scalar
from holdfast.formats.base import Segment, StoredTensor
from holdfast.formats.codes import boolean, integer, integers, real, text
from holdfast.formats.untyped import untyped_segments
from holdfast.spec import DTYPES, TensorSpec, contiguous_stride
from holdfast.state.kinds import KINDS
from holdfast.state.paths import dotted, printable
from holdfast.state.values import MAX_DEPTH, Opaque, Tree, Typed

_MARK, _TUPLE, _REDUCE, _STOP = b"(", b"t", b"R", b"."
DEPTH_LIMIT = (MAX_DEPTH - 50) // 3
"""Nesting that is written. A level of a dict takes three in our record's JSON, of which MAX_DEPTH are read back."""
_Step = tuple[Any, Tree]
"""What a composite yields: the key of a child, for messages, and the child."""
_Around = tuple[bytes, bytes, bytes]
"""Bytes that refer to a storage: what stands before its key, the key, and what stands after it."""


class Emitted(msgspec.Struct):
    """A pickle and what it refers to.

    Attributes:
        data: the bytes of ``data.pkl``.
        segments: the storages, in the order of their keys: 0, 1, ...
        elements: how many elements each is said to have.
    """

    data: bytes
    segments: list[Segment]
    elements: list[int]


def emit(tree: Tree, *, stream: bool = False) -> Emitted:
    """Writes the pickle of a tree.

    Args:
        tree: with StoredTensor leaves.
        stream: whether it is for the stream before 1.6: ids of storages have a sixth part, and all storages a class.

    Raises:
        UnsupportedValue: a value that no pickle of torch can hold; names its path.
    """
    return _Emitter(tree, stream).run(tree)


class _Emitter:
    def __init__(self, tree: Tree, stream: bool) -> None:
        self._out: list[bytes] = [b"\x80\x02"]
        self._memo: dict[bytes, bytes] = {}
        self._segments: list[Segment] = []
        self._elements: list[int] = []
        self._bytes_as, self._id_end = ("ByteStorage", b"N") if stream else ("UntypedStorage", b"")
        self._storages: dict[int, tuple[str, bytes, int]] = {}
        self._alike: dict[tuple[Any, ...], tuple[bytes, bytes, str, int]] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._untyped = untyped_segments(tree)
        self._path: list[Any] = []

    def run(self, tree: Tree) -> Emitted:
        """Walks with a stack of generators: no tree is too deep for the interpreter's own stack."""
        put = self._out.append
        above: list[Iterator[_Step]] = [iter(((None, tree),))]
        while above:
            for key, child in above[-1]:
                cls = type(child)
                if cls is StoredTensor:
                    self._path.append(key)
                    put(self._tensor(child))
                    self._path.pop()
                elif cls in _ATOMS:
                    try:
                        put(_ATOMS[cls](self, child))
                    except OverflowError:
                        self._path.append(key)
                        what = "an integer of more than 255 bytes; torch.load can't read it. Store it as text"
                        raise self._unsupported(what) from None
                else:
                    self._path.append(key)
                    if len(above) > DEPTH_LIMIT:
                        raise self._unsupported(f"nested deeper than {DEPTH_LIMIT} levels")
                    above.append(self._composite(child))
                    break
            else:
                above.pop()
                if above:
                    self._path.pop()
        put(_STOP)
        return Emitted(b"".join(self._out), self._segments, self._elements)

    def _composite(self, tree: Tree) -> Iterator[_Step]:
        cls = type(tree)
        if cls is list:
            return self._list(tree)
        if cls is dict:
            return self._mapping(b"}", tree.items())
        if cls is Typed:
            write = _KINDS.get(tree.kind)
            if write is not None:
                return write(self, tree.payload)
            if tree.kind in KINDS:
                return iter(((None, KINDS[tree.kind].plain(tree.payload)),))
            raise self._unsupported(f"a value of kind {tree.kind} has no form in a torch file")
        if cls is Opaque:
            raise self._unsupported(
                f"an object of class {printable(tree.type_name)} can't be written; save what it is made of, or drop it"
            )
        raise self._unsupported(f"a {cls.__name__} is no value of a document")

    def _unsupported(self, what: str) -> UnsupportedValue:
        path = dotted(key for key in self._path if key is not None)
        return UnsupportedValue(f"`{printable(path)}`: {what}", path=path)

    # -- bytes of single values

    def _shared(self, code: bytes) -> bytes:
        """``code`` the first time, then a reference to what it made."""
        known = self._memo.get(code)
        if known is not None:
            return known
        index = len(self._memo)
        short = index < 256
        self._memo[code] = (b"h%c" if short else b"j%b") % (index if short else struct.pack("<I", index))
        return code + (b"q%c" if short else b"r%b") % (index if short else struct.pack("<I", index))

    def _name(self, module: str, name: str) -> bytes:
        known = self._names.get((module, name))
        if known is not None:
            return known
        if not name.isidentifier() or not name.isascii():
            raise self._unsupported(f"{name!r:.100} is no name in {module}")
        code = f"c{module}\n{name}\n".encode()
        first = self._shared(code)
        self._names[module, name] = self._shared(code)
        return first

    def _bytes(self, value: bytes) -> bytes:
        encode = self._name("_codecs", "encode")
        return encode + text(value.decode("latin-1")) + self._shared(text("latin1")) + b"\x86R"

    def _complex(self, value: complex) -> bytes:
        return self._name("__builtin__", "complex") + real(value.real) + real(value.imag) + b"\x86R"

    # -- containers

    def _list(self, items: Iterable[Tree]) -> Iterator[_Step]:
        self._out.append(b"](")
        yield from enumerate(items)
        self._out.append(b"e")

    def _tuple(self, items: Iterable[Tree]) -> Iterator[_Step]:
        self._out.append(_MARK)
        yield from enumerate(items)
        self._out.append(_TUPLE)

    def _mapping(self, head: bytes, pairs: Iterable[tuple[Tree, Tree]]) -> Iterator[_Step]:
        self._out.append(head + _MARK)
        for key, value in pairs:
            if type(key) is str:
                self._out.append(text(key))
            else:
                yield key, as_key(key)
            yield key, value
        self._out.append(b"u")

    def _called(self, module: str, name: str, payload: Iterable[_Step]) -> Iterator[_Step]:
        """``module.name(payload)``."""
        self._out.append(self._name(module, name))
        yield from payload
        self._out.append(b"\x85R")

    def _set(self, items: list[Tree]) -> Iterator[_Step]:
        return self._called("__builtin__", "set", self._list([as_key(item) for item in items]))

    def _bytearray(self, data: bytes) -> Iterator[_Step]:
        return self._called("__builtin__", "bytearray", iter(((None, data),)))

    def _ordered_dict(self, pairs: Iterable[tuple[Tree, Tree]]) -> Iterator[_Step]:
        return self._mapping(self._name("collections", "OrderedDict") + b")R", pairs)

    def _counter(self, pairs: Iterable[tuple[Tree, Tree]]) -> Iterator[_Step]:
        return self._called("collections", "Counter", self._mapping(b"}", pairs))

    def _state_dict(self, payload: dict[str, Any]) -> Iterator[_Step]:
        items = payload["items"]
        yield from self._ordered_dict(items.items() if type(items) is dict else items)
        self._out.append(b"}" + text("_metadata"))
        yield "_metadata", Typed("ordered_dict", payload["metadata"])
        self._out.append(b"sb")

    def _record(self, payload: dict[str, Any]) -> Iterator[_Step]:
        fields = payload["fields"]
        yield None, fields["value"] if payload["form"] == "enum" else fields

    # -- torch's own values

    def _size(self, sizes: list[int]) -> Iterator[_Step]:
        return self._called("torch", "Size", self._tuple(sizes))

    def _device(self, name: str) -> Iterator[_Step]:
        kind, colon, index = name.partition(":")
        parts: list[Tree] = [kind, int(index)] if colon and index.isdecimal() else [name]
        self._out.append(self._name("torch", "device"))
        yield None, Typed("tuple", parts)
        self._out.append(_REDUCE)

    def _torch_name(self, name: str) -> Iterator[_Step]:
        self._out.append(self._name("torch", name))
        yield from ()

    def _layout(self, name: str) -> Iterator[_Step]:
        self._out.append(self._name("torch.serialization", "_get_layout") + text(f"torch.{name}") + b"\x85R")
        yield from ()

    def _memory_format(self, name: str) -> Iterator[_Step]:
        yield None, f"torch.{name}"

    def _scalar(self, payload: dict[str, Any]) -> Iterator[_Step]:
        yield None, plain_scalar(payload)

    def _array(self, payload: dict[str, Any]) -> Iterator[_Step]:
        yield None, plain_array(payload)

    # -- tensors

    def _storage(self, segment: Segment, dtype: str) -> _Around:
        """The persistent id of a storage, without its mark; the first use of a segment gives it its key."""
        known = self._storages.get(id(segment))
        if known is None:
            untyped = id(segment) in self._untyped
            numel = segment.length if untyped else segment.length // DTYPES[dtype].itemsize
            name = self._bytes_as if untyped else str(DTYPES[dtype].storage)
            known = self._new_storage(segment, name, numel)
        name, key, numel = known
        module = "torch.storage" if name == "UntypedStorage" else "torch"
        pieces = text("storage"), f"c{module}\n{name}\n".encode(), text(segment.location)
        mark, cls, location = [self._shared(piece) for piece in pieces]
        return b"(" + mark + cls, key, location + integer(numel) + self._id_end + b"tQ"

    def _new_storage(self, segment: Segment, name: str, numel: int) -> tuple[str, bytes, int]:
        known = self._storages[id(segment)] = name, text(str(len(self._segments))), numel
        self._segments.append(segment)
        self._elements.append(numel)
        return known

    def _place(self, leaf: StoredTensor) -> _Around:
        """Storage, offset, sizes and strides: what the arguments of every rebuild form begin with."""
        spec = leaf.spec
        before, key, after = self._storage(leaf.segment, spec.dtype)
        offset, rest = divmod(leaf.offset, spec.itemsize)
        if rest:
            raise self._unsupported(f"starts {leaf.offset} bytes into its storage, in the middle of a {spec.dtype}")
        stride = contiguous_stride(spec.shape) if spec.stride is None else spec.stride
        return b"(" + before, key, after + integer(offset) + integers(spec.shape) + integers(stride)

    def _tensor(self, leaf: StoredTensor, flags: bytes = b"") -> bytes:
        """``_rebuild_tensor_v2``, or v3 where the storage has no dtype; ``flags`` is a dict of lazy bits."""
        segment = leaf.segment
        untyped = id(segment) in self._untyped
        kind = leaf.spec, leaf.offset, leaf.requires_grad, segment.length, segment.location, untyped, flags
        alike = self._alike.get(kind)
        if alike is not None and id(segment) not in self._storages:  # of fifty thousand small ones, all but two
            before, after, name, numel = alike
            return before + self._new_storage(segment, name, numel)[1] + after
        memo = len(self._memo)
        rebuild = self._name("torch._utils", "_rebuild_tensor_v3" if untyped else "_rebuild_tensor_v2")
        before, key, after = self._place(leaf)
        hooks = self._name("collections", "OrderedDict")
        dtype = self._name("torch", leaf.spec.dtype) if untyped else b""
        before, after = rebuild + before, b"%b%b%b)R%b%btR" % (after, boolean(leaf.requires_grad), hooks, dtype, flags)
        if len(self._memo) == memo:  # it made no name that others refer to: the next of its kind differs in its key
            name, _, numel = self._storages[id(segment)]
            self._alike[kind] = before, after, name, numel
        return before + key + after

    def _lazy(self, payload: Tree, bits: tuple[str, ...]) -> Iterator[_Step]:
        """Tensors whose conjugation or negation has not been carried out."""
        while type(payload) is Typed and payload.kind in ("conj", "neg"):
            bits, payload = (*bits, payload.kind), payload.payload
        if type(payload) is not StoredTensor:
            raise self._unsupported("a lazy conjugate of something that is no tensor")
        flags = b"}(" + b"".join(text(bit) + boolean(True) for bit in sorted(set(bits))) + b"u"
        self._out.append(self._tensor(payload, flags))
        yield from ()

    def _parameter(self, payload: dict[str, Any]) -> Iterator[_Step]:
        state = payload.get("state")
        self._out.append(self._name("torch._utils", "_rebuild_parameter_with_state" if state else "_rebuild_parameter"))
        self._out.append(_MARK)
        yield None, payload["data"]
        self._out.append(boolean(payload["requires_grad"]) + self._name("collections", "OrderedDict") + b")R")
        if state:
            yield "state", state
        self._out.append(b"tR")

    def _plainly(self, payload: dict[str, Any]) -> Iterator[_Step]:
        """A tensor with a class or attributes of its own: written without them, our record has them."""
        yield None, payload["data"]

    def _wrapper(self, payload: dict[str, Any]) -> Iterator[_Step]:
        """A tensor that consists of its attributes: only they are written."""
        yield None, payload["state"]

    def _nested(self, payload: dict[str, Any]) -> Iterator[_Step]:
        if self._id_end:
            what = "a nested tensor in the stream of torch < 1.6, which torch can't read again; store unbind()"
            raise self._unsupported(what)
        self._out.append(self._name("torch._utils", "_rebuild_nested_tensor") + _MARK)
        for name in ("data", "sizes", "strides", "offsets"):
            yield None if name == "data" else name, payload[name]
        self._out.append(_TUPLE + _REDUCE)

    def _jagged(self, payload: dict[str, Any]) -> Iterator[_Step]:
        """As torch does, but without the cached extremes of the lengths: it works them out when it needs them."""
        self._out.append(self._name("torch.nested._internal.nested_tensor", "_rebuild_njt") + b"}(")
        for name, part in (("values", "data"), ("offsets", "offsets"), ("lengths", "lengths")):
            self._out.append(text(name))
            yield None if part == "data" else part, payload[part]
        rest = {"_ragged_idx": integer(payload["dimension"]), "_metadata_cache": b"}"}
        rest["requires_grad"] = boolean(payload["requires_grad"])
        self._out.append(b"".join([text(name) + code for name, code in rest.items()]) + b"u\x85R")

    def _sparse(self, payload: dict[str, Any]) -> Iterator[_Step]:
        coo = payload["layout"] == "sparse_coo"
        self._out.append(self._name("torch._utils", "_rebuild_sparse_tensor") + _MARK)
        yield from self._layout(payload["layout"])
        self._out.append(_MARK)
        for name in ("indices", "values") if coo else ("compressed", "plain", "values"):
            yield name, payload[name]
        yield "size", Typed("torch.Size", payload["size"])
        if coo:
            yield "coalesced", payload["coalesced"]
        self._out.append(b"ttR")

    def _quantized(self, payload: dict[str, Any]) -> Iterator[_Step]:
        leaf = payload["data"]
        if type(leaf) is not StoredTensor:
            raise self._unsupported("a quantized tensor without its integers")
        if "packed" in payload:
            leaf = StoredTensor(TensorSpec(payload["packed"], tuple(payload["shape"])), leaf.segment, leaf.offset)
        self._out.append(self._name("torch._utils", "_rebuild_qtensor") + b"".join(self._place(leaf)) + _MARK)
        scheme = payload["scheme"]
        if scheme == "per_channel_affine_float_qparams":
            scheme = "per_channel_affine"  # as torch itself writes it
        yield from self._torch_name(scheme)
        for name in ("scale", "zero_point", "scales", "zero_points", "axis"):
            if name in payload:
                yield name, payload[name]
        hooks = self._name("collections", "OrderedDict")
        self._out.append(_TUPLE + boolean(leaf.requires_grad) + hooks + b")RtR")

    def _meta(self, payload: dict[str, Any]) -> Iterator[_Step]:
        self._out.append(self._name("torch._utils", "_rebuild_meta_tensor_no_storage") + _MARK)
        yield from self._torch_name(payload["dtype"])
        grad = boolean(payload["requires_grad"])
        self._out.append(integers(payload["shape"]) + integers(payload["stride"]) + grad + b"tR")

    def _bare_storage(self, payload: dict[str, Any]) -> Iterator[_Step]:
        self._out.append(b"".join(self._storage(payload["data"].segment, payload["data"].spec.dtype)))
        yield from ()


_ATOMS: dict[type, Callable[[_Emitter, Any], bytes]] = {
    type(None): lambda _, value: b"N",
    bool: lambda _, value: boolean(value),
    int: lambda _, value: integer(value),
    float: lambda _, value: real(value),
    complex: _Emitter._complex,
    str: lambda _, value: text(value),
    bytes: _Emitter._bytes,
}

_KINDS: dict[str, Callable[[_Emitter, Any], Iterator[_Step]]] = {
    "tuple": _Emitter._tuple,
    "set": _Emitter._set,
    "frozenset": _Emitter._list,
    "bytearray": _Emitter._bytearray,
    "dict": lambda self, pairs: self._mapping(b"}", pairs),
    "ordered_dict": _Emitter._ordered_dict,
    "counter": _Emitter._counter,
    "defaultdict": lambda self, payload: self._mapping(b"}", payload["items"]),
    "state_dict": _Emitter._state_dict,
    "record": _Emitter._record,
    "torch.Size": _Emitter._size,
    "torch.device": _Emitter._device,
    "torch.dtype": _Emitter._torch_name,
    "torch.qscheme": _Emitter._torch_name,
    "torch.layout": _Emitter._layout,
    "torch.memory_format": _Emitter._memory_format,
    "torch.storage": _Emitter._bare_storage,
    "numpy.scalar": _Emitter._scalar,
    "numpy.array": _Emitter._array,
    "parameter": _Emitter._parameter,
    "attributed": _Emitter._plainly,
    "subclass": _Emitter._plainly,
    "wrapper": _Emitter._wrapper,
    "nested": _Emitter._nested,
    "jagged": _Emitter._jagged,
    "conj": lambda self, payload: self._lazy(payload, ("conj",)),
    "neg": lambda self, payload: self._lazy(payload, ("neg",)),
    "sparse": _Emitter._sparse,
    "quantized": _Emitter._quantized,
    "meta": _Emitter._meta,
}
"""Kinds with a form of their own; ``KINDS[...].plain`` of holdfast.state.kinds has the others."""


def as_key(tree: Tree) -> Tree:
    """A value that stands as a dict key or in a set, with tuples where its plain form would not be hashable."""
    if type(tree) is list:
        return Typed("tuple", [as_key(item) for item in tree])
    if type(tree) is dict:
        return as_key([[name, item] for name, item in tree.items()])
    if type(tree) is not Typed:
        return tree
    if tree.kind in ("tuple", "frozenset", "range", "slice", "fraction"):
        return as_key(tree.payload)
    if tree.kind == "record":
        fields = tree.payload["fields"]
        return as_key(fields["value"] if tree.payload["form"] == "enum" else fields)
    return tree
