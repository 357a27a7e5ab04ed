"""From the inert nodes of a pickle to an inert tree: the forms that torch writes are known, all else stays opaque.

A form is known by the name that the pickle would call. Its arguments are checked with Python's own integers and types
before a tensor of it exists; nothing here imports or calls what a file names. Source of the forms: ``torch/_utils.py``,
``torch/_tensor.py`` and ``torch/serialization.py`` of torch 2.13 and, for the older ones, of 1.0 to 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import msgspec

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.formats.base import StoredTensor
from holdfast.formats.forms import FORMS, TORCH_NAMES
from holdfast.formats.nodes import Call, Dict, Global, Node, Persistent, Set
from holdfast.formats.parts import Parts
from holdfast.formats.pickles import parse
from holdfast.formats.storages import Known, StorageOf, Storages, class_named
from holdfast.formats.tensorforms import of_class
from holdfast.formats.tensors import PACKED, TensorPlacer, checked_spec, needed_bytes, stored_tensor
from holdfast.spec import BY_STORAGE, DTYPES, TensorSpec
from holdfast.state.paths import printable
from holdfast.state.values import ATOMS, MAX_DEPTH, Opaque, Tree, Typed
from holdfast.storage.source import shown

BASE_NODES, NODES_PER_BYTE = 100_000, 4
"""Values that a tree may have once everything shared is counted as often as it occurs: a base, and so many a byte."""
_Building = Generator[Node, Tree, Tree]


def build_tree(data: bytes, storage: StorageOf, file: str) -> Tree:
    """The inert tree of a pickle.

    Args:
        data: the pickle.
        storage: where its storages are.
        file: named in errors.

    Raises:
        CorruptFile: it can't be run, or a tensor's numbers lie.
        RefusedFile: it contains itself, is nested too deep, or multiplies.
    """
    root = parse(data, file).root
    return Builder(storage, file, BASE_NODES + NODES_PER_BYTE * len(data)).build(root)


class _Frame(msgspec.Struct, eq=False):
    """A value that is being built: what builds it, its node, the values in it and the levels below it so far."""

    steps: _Building
    node: Node
    weight: int = 1
    height: int = 0


class Builder:
    """Builds the tree of one pickle.

    Args:
        storage: where the storages are.
        file: named in errors.
        budget: values that the tree may have.
    """

    def __init__(self, storage: StorageOf, file: str, budget: int) -> None:
        self._file = file
        self._budget = budget
        self._storages = Storages(storage, file)
        self._done: dict[int, tuple[Tree, int, int]] = {}
        self._made: list[Node] = []  # keeps nodes of our own alive, so that no id comes twice
        self._placer = TensorPlacer(file)

    def build(self, root: Node) -> Tree:
        """Walks with a stack of generators, each sent the value of the node that it asked for."""
        frames = [_Frame(self._one(root), None, weight=0)]
        open_nodes: set[int] = set()
        value: Tree = None
        while True:
            frame = frames[-1]
            try:
                node = frame.steps.send(value)
            except StopIteration as stop:
                value = stop.value
                frames.pop()
                if not frames:
                    return value
                self._done[id(frame.node)] = value, frame.weight, frame.height
                open_nodes.discard(id(frame.node))
                self._count(frames, frame.weight, frame.height + 1)
                continue
            cls = type(node)
            if cls in ATOMS:
                value = node
                frame.weight += 1
            elif id(node) in self._done:
                value, weight, height = self._done[id(node)]
                self._count(frames, weight, height + 1)
            elif id(node) in open_nodes:
                value = self._itself(node, cls)
                frame.weight += 1
            elif cls is Call and type(node.func) is Global and node.func.path in _TENSORS:
                value = _TENSORS[node.func.path](self, node)
                self._done[id(node)] = value, 1, 1
                frame.weight += 1
            else:
                self._count(frames, 0, 1)
                open_nodes.add(id(node))
                frames.append(_Frame(self._steps(node, cls), node))
                value = None

    def _itself(self, node: Node, cls: type) -> Opaque:
        """What stands where an object that is not rebuilt refers to itself, such as a part to its whole: its name."""
        if cls is Call and type(node.func) is Global and node.func.path not in FORMS:
            return Opaque(node.func.path, None)
        raise RefusedFile(f"`{shown(self._file)}`: the pickle holds a value that contains itself", file=self._file)

    def _count(self, frames: list[_Frame], weight: int, height: int) -> None:
        frame = frames[-1]
        frame.weight += weight
        frame.height = max(frame.height, height)
        if len(frames) + frame.height > MAX_DEPTH:
            raise RefusedFile(
                f"`{shown(self._file)}`: the pickle is nested deeper than {MAX_DEPTH} levels", file=self._file
            )
        if frame.weight > self._budget:
            raise RefusedFile(
                f"`{shown(self._file)}`: the pickle refers to its own values so often that its tree would have more "
                f"than {self._budget:,} of them; files of torch do not",
                file=self._file,
            )

    def _steps(self, node: Node, cls: type) -> _Building:
        if cls is Dict:
            return self._dict(node.flat)
        if cls is list:
            return self._list(node)
        if cls is tuple:
            return self._typed("tuple", node)
        if cls is Call:
            return self._call(node)
        if cls is Set:
            return self._typed("frozenset" if node.frozen else "set", node.items)
        return self._constant(self._partless(node, cls))

    def _one(self, node: Node) -> _Building:
        return (yield node)

    def _list(self, items: list[Node] | tuple[Node, ...]) -> _Building:
        built = []
        for item in items:
            built.append((yield item))
        return built

    def _typed(self, kind: str, items: list[Node] | tuple[Node, ...]) -> _Building:
        return Typed(kind, (yield from self._list(items)))

    def _pairs(self, flat: list[Node]) -> _Building:
        built = []
        for index in range(0, len(flat), 2):
            built.append([(yield flat[index]), (yield flat[index + 1])])
        return built

    def _dict(self, flat: list[Node]) -> _Building:
        if all(type(key) is str for key in flat[::2]):
            items = {}
            for index in range(0, len(flat), 2):
                items[flat[index]] = yield flat[index + 1]
            return items
        return Typed("dict", (yield from self._pairs(flat)))

    def _constant(self, value: Tree) -> _Building:
        yield from ()
        return value

    def _partless(self, node: Node, cls: type) -> Tree:
        """The value of a node that has no others in it."""
        if cls is Global:
            kind = TORCH_NAMES.get(node.path)
            return Opaque(node.path, None) if kind is None else Typed(kind, node.name)
        if cls is Persistent:
            named = class_named(node)
            if named is not None:
                return self._partless(named, Global)
            if type(node.id) in (StoredTensor, Typed):  # what a container resolved before
                return node.id
            known = self._storages.find(node)
            dtype = known.dtype or "uint8"
            spec = TensorSpec(dtype, (known.length // DTYPES[dtype].itemsize,))
            data = stored_tensor(known.segment, spec, offset=known.start, file=self._file)
            return Typed("torch.storage", {"dtype": known.dtype, "data": data})
        return Typed("bytearray", bytes(node))  # nothing else is left

    # -- calls

    def _call(self, call: Call) -> _Building:
        """The value of a call of a known form; an Opaque for any other."""
        if type(call.args) is not tuple:
            raise self._lie("a call whose arguments are no tuple")
        func = class_named(call.func)
        path = func.path if func is not None else None
        special = _SPECIAL.get(path) if path else None
        if special is not None:
            return (yield from special(self, call))
        parts = Parts(
            (yield from self._list(call.args)),
            (yield call.state),
            call.built,
            (yield from self._list(call.items or ())),
            (yield from self._pairs(call.flat or [])),
        )
        if call.kwargs is not None and not (type(call.kwargs) is Dict and not call.kwargs.flat):
            parts.args.append((yield call.kwargs))
        elif path in FORMS:
            value = FORMS[path](parts)
            if value is not None:
                return value
        if path is None:
            func = yield call.func
            path = f"the result of {getattr(func, 'type_name', 'something')}"
            parts.args.insert(0, func)
        return _opaque(path, parts)

    def _reconstructor(self, call: Call) -> _Building:
        """``copyreg._reconstructor(cls, base, state)``: what protocols 0 and 1 write for a plain object."""
        cls, base, state = call.args if len(call.args) == 3 else (None, None, None)
        if type(cls) is not Global or type(base) is not Global:
            raise self._lie("copyreg._reconstructor without a class")
        args = () if base.path == "builtins.object" else (state,)
        plain = Call(cls, args, call.state, call.built, call.items, call.flat)
        self._made.append(plain)
        return (yield plain)

    def _from_type(self, call: Call) -> _Building:
        """``_rebuild_from_type_v2(func, type, args, state)``: a tensor of a subclass, or one with attributes."""
        func, cls, args, state = call.args if len(call.args) == 4 else (None, None, None, None)
        if type(func) is not Global or type(cls) is not Global or type(args) is not tuple:
            raise self._lie("_rebuild_from_type_v2 takes a function, a class, arguments and a state")
        inner = Call(func, args)
        self._made.append(inner)
        data, attributes = (yield inner), (yield state)
        value = of_class(cls.path, data, attributes)
        return Opaque(cls.path, [data], attributes) if value is None else value

    def _quantized(self, call: Call) -> _Building:
        """``_rebuild_qtensor(storage, offset, size, stride, (scheme, ...), requires_grad, hooks)``."""
        storage, offset, size, stride, scheme, grad, _ = self._arguments(call, 7)
        known = self._storages.find(storage)
        leaf = self._leaf(known, known.dtype or "", (offset, size, stride, grad))
        if type(scheme) is not tuple or not scheme or not known.dtype or known.dtype[:1] != "q":
            raise self._lie("a quantized tensor without a scheme, or of a dtype that is not quantized")
        values = yield from self._list(scheme)
        name = values[0].payload if type(values[0]) is Typed and values[0].kind == "torch.qscheme" else None
        fields = {"per_tensor_affine": ("scale", "zero_point"), "per_channel_affine": ("scales", "zero_points", "axis")}
        fields["per_channel_affine_float_qparams"] = fields["per_channel_affine"]
        names = fields.get(name) if name else None
        if names is None or len(values) != 1 + len(names):
            raise self._lie(f"a quantized tensor of scheme {name!r:.100} with {len(values) - 1} parameters")
        parameters = dict(zip(names, values[1:], strict=True))
        for field, value in parameters.items():
            wanted = {"scale": float, "zero_point": int, "axis": int}.get(field, StoredTensor)
            if type(value) is not wanted:
                raise self._lie(f"a quantized tensor whose {field} is a {type(value).__name__}")
        if name == "per_channel_affine" and values[2].spec.dtype.startswith("float"):
            name = "per_channel_affine_float_qparams"  # torch writes the other name and means this one
        if leaf.spec.dtype not in PACKED:
            return Typed("quantized", {"scheme": name, **parameters, "data": leaf})
        return Typed("quantized", {"scheme": name, **parameters, **self._packed(leaf)})

    def _packed(self, leaf: StoredTensor) -> dict[str, Tree]:
        """A tensor with several elements in a byte, as its bytes and what they are."""
        if leaf.spec.stride is not None:
            raise self._lie(f"a {leaf.spec.dtype} tensor that is not row-major")
        data = StoredTensor(TensorSpec("uint8", (needed_bytes(leaf.spec),)), leaf.segment, leaf.offset)
        return {"packed": leaf.spec.dtype, "shape": list(leaf.spec.shape), "data": data}

    # -- tensors

    def _strided(self, call: Call) -> Tree:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, bits])``."""
        args = call.args
        if type(args) is not tuple or not 6 <= len(args) <= 7:
            raise self._lie("_rebuild_tensor_v2 takes 6 or 7 arguments")
        self._no_hooks(args[5])
        known = self._storages.find(args[0])
        leaf = self._leaf(known, known.dtype or "uint8", args[1:5])
        return leaf if len(args) == 6 else self._with_bits(leaf, args[6])

    def _strided_v1(self, call: Call) -> Tree:
        """``_rebuild_tensor(storage, offset, size, stride)``."""
        args = self._arguments(call, 4)
        known = self._storages.find(args[0])
        return self._leaf(known, known.dtype or "uint8", (*args[1:], False))

    def _strided_v0(self, call: Call) -> Tree:
        """``FloatTensor(storage, offset, size, stride)``, or without arguments and with these four as its state."""
        args = call.state if call.args == () else call.args
        if type(args) is not tuple or len(args) != 4 or (call.built and call.args) or call.items or call.flat:
            raise self._lie(f"{call.func.path} takes a storage, an offset, sizes and strides")
        known = self._storages.find(args[0])
        return self._leaf(known, known.dtype or "uint8", (*args[1:], False))

    def _strided_v3(self, call: Call) -> Tree:
        """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype[, bits])``."""
        args = call.args
        if type(args) is not tuple or not 7 <= len(args) <= 8:
            raise self._lie("_rebuild_tensor_v3 takes 7 or 8 arguments")
        self._no_hooks(args[5])
        leaf = self._leaf(self._storages.find(args[0]), self._dtype(args[6]), args[1:5])
        return leaf if len(args) == 7 else self._with_bits(leaf, args[7])

    def _meta(self, call: Call) -> Tree:
        """``_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)``: a tensor without bytes."""
        dtype, size, stride, grad = self._arguments(call, 4)
        spec = TensorSpec(self._dtype(dtype), self._sizes(size), self._sizes(stride))
        checked_spec(spec, "a meta tensor", file=self._file)
        if type(grad) is not bool:
            raise self._lie("a meta tensor whose requires_grad is no bool")
        shape, steps = list(spec.shape), list(spec.stride or ())
        return Typed("meta", {"dtype": spec.dtype, "shape": shape, "stride": steps, "requires_grad": grad})

    def _arguments(self, call: Call, count: int) -> tuple[Node, ...]:
        if type(call.args) is not tuple or len(call.args) != count or call.built or call.items or call.flat:
            raise self._lie(f"{call.func.path} takes {count} arguments and no state")
        return call.args

    def _leaf(self, known: Known, dtype: str, place: tuple[Node, ...]) -> StoredTensor:
        """A tensor of a storage; ``place`` is offset (in elements), size, stride and requires_grad."""
        offset, size, stride, grad = place
        if type(offset) is not int or dtype not in DTYPES:
            raise self._lie(f"a tensor of {known.segment.name} with offset {offset!r:.100} and dtype {dtype!r:.100}")
        size = size if type(size) is tuple else self._sizes(size)
        stride = stride if type(stride) is tuple else self._sizes(stride)
        start = known.start + offset * DTYPES[dtype].itemsize
        leaf = self._placer.place(known.segment, (dtype, size, stride), start, grad)
        if known.length != known.segment.length and start + needed_bytes(leaf.spec) > known.start + known.length:
            raise self._lie(f"a tensor {leaf.spec} that reaches past its view of {known.segment.name}")
        return leaf

    def _sizes(self, node: Node) -> tuple[Node, ...]:
        """A tuple of sizes, given plainly or as a torch.Size."""
        if type(node) is Call and type(node.func) is Global and node.func.path == "torch.Size" and len(node.args) == 1:
            node = node.args[0]
        if type(node) is not tuple:
            raise self._lie(f"sizes that are a {type(node).__name__}")
        return node

    def _dtype(self, node: Node) -> str:
        if type(node) is not Global or node.module != "torch" or node.name not in DTYPES:
            raise self._lie(f"a dtype that is {getattr(node, 'path', type(node).__name__)!r:.100}")
        return node.name

    def _no_hooks(self, node: Node) -> None:
        """Hooks are functions; every torch since 0.2 writes an empty OrderedDict for them."""
        if node is None or (type(node) is Dict and not node.flat):
            return
        if type(node) is not Call or type(node.func) is not Global or node.func.path != "collections.OrderedDict":
            raise self._lie("a tensor whose hooks are no OrderedDict")
        if node.flat or node.args not in ((), ([],)):
            raise RefusedFile(f"`{shown(self._file)}`: a tensor carries hooks (functions); drop them", file=self._file)

    def _with_bits(self, leaf: StoredTensor, bits: Node) -> Tree:
        """A tensor whose conjugation or negation was still to be done."""
        if bits is None:
            return leaf
        flat = bits.flat if type(bits) is Dict else [None]
        result: Tree = leaf
        for name, value in zip(flat[::2], flat[1::2], strict=False):
            if name not in ("conj", "neg") or type(value) is not bool:
                raise self._lie(f"a tensor with the unknown property {name!r:.100}")
            result = Typed(name, result) if value else result
        if flat == [None]:
            raise self._lie("a tensor whose properties are no dict")
        return result

    def _lie(self, what: str) -> CorruptFile:
        return CorruptFile(f"`{shown(self._file)}`: the pickle has {printable(what)}: corrupt", file=self._file)


def _opaque(path: str, parts: Parts) -> Opaque:
    """What is known of an object that is not rebuilt. Items that its class would have been given are in its state."""
    if not parts.items and not parts.pairs:
        return Opaque(path, parts.args, parts.state)
    inside = {"state": parts.state, "items": parts.items, "pairs": parts.pairs}
    return Opaque(path, parts.args, inside)


_TENSORS: dict[str, Callable[[Builder, Call], Tree]] = {
    "torch._utils._rebuild_tensor_v2": Builder._strided,
    "torch._utils._rebuild_tensor_v3": Builder._strided_v3,
    "torch._utils._rebuild_tensor": Builder._strided_v1,
    "torch._utils._rebuild_meta_tensor_no_storage": Builder._meta,
    "torch.Tensor": Builder._strided_v0,
}
for _row in BY_STORAGE:
    for _home in ("torch", "torch.cuda"):
        _TENSORS[f"{_home}.{_row.replace('Storage', 'Tensor')}"] = Builder._strided_v0
"""Forms whose arguments hold no other tensor: built at once."""

_SPECIAL: dict[str, Callable[[Builder, Call], _Building]] = {
    "copyreg._reconstructor": Builder._reconstructor,
    "torch._utils._rebuild_qtensor": Builder._quantized,
}
for _home in ("torch._tensor", "torch.tensor"):
    for _name in ("_rebuild_from_type", "_rebuild_from_type_v2"):
        _SPECIAL[f"{_home}.{_name}"] = Builder._from_type
"""Forms whose arguments are not values."""

REBUILT = frozenset({*_TENSORS, *_SPECIAL})
"""Functions and classes that tensors are made with."""
