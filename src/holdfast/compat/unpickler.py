"""The unpickler of ``weights_only=True``: 34 opcodes, and only what the two tables of ``allowed`` have is called.

It makes live objects while it reads, in torch's order, because programs see that order in ``__setstate__``; everything
else in holdfast takes pickles apart with ``holdfast.formats.pickles`` and calls nothing. Rules and messages are those
of ``torch/_weights_only_unpickler.py`` of torch 2.13, which programs match against.
"""

from __future__ import annotations

import collections
import struct
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from pickle import UnpicklingError, decode_long
from typing import IO, Any

import torch

from holdfast.compat.allowed import BLOCKED_MODULES, added_globals, allowed_globals

_U8, _U16, _U32, _I32, _F64 = [struct.Struct(form) for form in ("<B", "<H", "<I", "<i", ">d")]
_NESTED = frozenset(
    {
        "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.nested._internal.nested_tensor._rebuild_njt",
        "torch._dynamo.decorators._DimRange",
    }
)
_DISTRIBUTED = frozenset(
    {
        "torch.distributed.device_mesh.DeviceMesh",
        "torch.distributed.tensor._dtensor_spec.DTensorSpec",
        "torch.distributed.tensor._dtensor_spec.TensorMeta",
        "torch.distributed.tensor.DTensor",
        "torch.distributed.tensor.placement_types.Partial",
        "torch.distributed.tensor.placement_types.Replicate",
        "torch.distributed.tensor.placement_types.Shard",
    }
)


class WeightsUnpickler:
    """Reads one pickle.

    Args:
        file: where it begins at the present position.
        persistent_load: makes a storage out of its id.
        encoding: of Python 2 strings; ``bytes`` leaves them as bytes.
    """

    def __init__(self, file: IO[bytes], persistent_load: Callable[[Any], Any], *, encoding: str = "utf-8") -> None:
        self._file = file
        self._persistent_load = persistent_load
        self._encoding = encoding
        self._allowed = allowed_globals()
        self._added = added_globals()
        self._callable = {id(value) for table in (self._allowed, self._added) for value in table.values()}
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._above: list[list[Any]] = []

    def load(self) -> Any:
        """The object.

        Raises:
            UnpicklingError: an opcode, name or call that is not allowed.
            EOFError: the pickle is cut short.
        """
        while True:
            code = self._read(1)[0]
            do = _OPCODES.get(code)
            if code != _STOP and do is None:
                raise UnpicklingError(f"Unsupported operand {code}")
            if len(self._stack) < _NEEDED.get(code, 0) or (code in _MARKED and not self._above):
                raise UnpicklingError("the pickle takes more from the stack than it put there")
            if do is None:
                return self._stack.pop()
            do(self)

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the pickle is cut short")
        return data

    def _line(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the pickle is cut short")
        return line[:-1].decode("utf-8")

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._read(form.size))[0]

    def _marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items = self._stack
        self._stack = self._above.pop()
        return items

    # -- what names something, or calls it

    def _global(self) -> None:
        module, name = self._line(), self._line()
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        path = f"{module}.{name}"
        if module in BLOCKED_MODULES:
            raise UnpicklingError(f"Trying to load unsupported GLOBAL {path} whose module {module} is blocked.")
        if path in self._allowed:
            self._stack.append(self._allowed[path])
        elif path in self._added:
            self._stack.append(self._added[path])
        elif path in _NESTED:
            raise UnpicklingError(
                "``torch.nested`` and ``torch._dynamo`` must be imported to load nested jagged tensors (NJTs)"
            )
        elif path in _DISTRIBUTED:
            raise UnpicklingError("``torch.distributed.tensor`` must be imported to load DTensors")
        else:
            path = path.removeprefix("builtins.")
            raise UnpicklingError(
                f"Unsupported global: GLOBAL {path} was not an allowed global by default. "
                f"Please use `torch.serialization.add_safe_globals([{path}])` or the "
                f"`torch.serialization.safe_globals([{path}])` context manager to allowlist this global "
                "if you trust this class/function."
            )

    def _new(self) -> None:
        args, cls = self._stack.pop(), self._stack.pop()
        if cls is torch.nn.Parameter:
            self._stack.append(torch.nn.Parameter(*args))
        elif id(cls) in self._callable:
            self._stack.append(_noted_sparse(cls, cls.__new__(cls, *args)))
        else:
            raise UnpicklingError(
                "Can only create new object for nn.Parameter or classes allowlisted "
                f"via `add_safe_globals` but got {cls}"
            )

    def _reduce(self) -> None:
        args, function = self._stack.pop(), self._stack[-1]
        if id(function) not in self._callable:
            owner = f" which belongs to {function.__self__}" if hasattr(function, "__self__") else ""
            raise UnpicklingError(f"Trying to call reduce for unrecognized function {function}{owner}")
        self._stack[-1] = _noted_sparse(function, function(*args))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        cls = type(target)
        if cls is torch.Tensor:
            target.set_(*state)  # as torch < 0.2 pickled tensors
        elif cls is torch.nn.Parameter:
            target.__setstate__(state)
        elif cls is collections.OrderedDict:
            target.__dict__.update(state)
        elif id(cls) not in self._callable:
            raise UnpicklingError(
                "Can only build Tensor, Parameter, OrderedDict or types allowlisted "
                f"via `add_safe_globals`, but got {cls}"
            )
        elif hasattr(target, "__setstate__"):
            target.__setstate__(state)
        else:
            slots = None
            if isinstance(state, tuple) and len(state) == 2:
                state, slots = state
            if state:  # a class with slots alone has no __dict__
                target.__dict__.update(state)
            for name, value in (slots or {}).items():
                setattr(target, name, value)

    def _persistent(self) -> None:
        key = self._stack.pop()
        if type(key) is not tuple and type(key) is not int:
            raise UnpicklingError(f"persistent_load id must be tuple or int, but got {type(key)}")
        if type(key) is tuple and key and key[0] not in ("storage", b"storage"):
            raise UnpicklingError(f"Only persistent_load of storage is allowed, but got {type(key[0])}")
        self._stack.append(self._persistent_load(key))

    # -- containers

    def _append(self) -> None:
        item = self._stack.pop()
        if type(self._stack[-1]) is not list:
            raise UnpicklingError(f"Can only append to lists, but got {type(self._stack[-1])}")
        self._stack[-1].append(item)

    def _appends(self) -> None:
        items = self._marked()
        if type(self._stack[-1]) is not list:
            raise UnpicklingError(f"Can only extend lists, but got {type(self._stack[-1])}")
        self._stack[-1].extend(items)

    def _set(self, opcode: str, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, collections.OrderedDict, collections.Counter):
            raise UnpicklingError(
                f"Can only {opcode} for dict, collections.OrderedDict, collections.Counter, but got {type(target)}"
            )
        for index in range(0, len(items), 2):
            target[items[index]] = items[index + 1]

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set("SETITEM", [key, value])

    def _mark(self) -> None:
        self._above.append(self._stack)
        self._stack = []

    def _tuple_of(self, count: int) -> None:
        self._stack[-count:] = [tuple(self._stack[-count:])]

    # -- plain values

    def _text(self) -> None:
        self._stack.append(str(self._read(self._number(_U32)), "utf-8", "surrogatepass"))

    def _old_text(self) -> None:
        data = self._read(self._number(_U8))
        self._stack.append(data if self._encoding == "bytes" else data.decode(self._encoding, "strict"))

    def _protocol(self) -> None:
        protocol = self._number(_U8)
        if protocol != 2:
            warnings.warn(
                f"Detected pickle protocol {protocol} in the checkpoint, which was not the default pickle protocol "
                "used by `torch.load` (2). The weights_only Unpickler might not support all instructions implemented "
                "by this protocol, please file an issue for adding support if you encounter this.",
                stacklevel=2,
            )

    def _put(self, form: struct.Struct) -> None:
        self._memo[self._number(form)] = self._stack[-1]

    def _get(self, form: struct.Struct) -> None:
        index = self._number(form)
        if index not in self._memo:
            raise UnpicklingError(f"Memo value not found at index {index}")
        self._stack.append(self._memo[index])


def _noted_sparse(function: Any, made: Any) -> Any:
    """Sparse tensors made by the classes of old torch are checked when all storages are there."""
    if function in torch._tensor_classes and "sparse" in function.__module__:
        torch._utils._sparse_tensors_to_validate.append(made)
    return made


def _push(make: Callable[[WeightsUnpickler], Any]) -> Callable[[WeightsUnpickler], None]:
    def do(machine: WeightsUnpickler) -> None:
        value = make(machine)
        machine._stack.append(value)

    return do


_STOP = ord(".")
_NEEDED = {ord(code): count for count, codes in ((1, ".\x85qrQ"), (2, "Rba\x81\x86"), (3, "s\x87")) for code in codes}
"""Values that must be on the stack."""
_MARKED = frozenset(b"teu")
_OPCODES: dict[int, Callable[[WeightsUnpickler], None]] = {
    ord(code): do
    for code, do in {
        "c": WeightsUnpickler._global,
        "\x81": WeightsUnpickler._new,
        "R": WeightsUnpickler._reduce,
        "b": WeightsUnpickler._build,
        "Q": WeightsUnpickler._persistent,
        "a": WeightsUnpickler._append,
        "e": WeightsUnpickler._appends,
        "s": WeightsUnpickler._set_item,
        "u": lambda machine: machine._set("SETITEMS", machine._marked()),
        "(": WeightsUnpickler._mark,
        "t": _push(lambda machine: tuple(machine._marked())),
        "\x85": lambda machine: machine._tuple_of(1),
        "\x86": lambda machine: machine._tuple_of(2),
        "\x87": lambda machine: machine._tuple_of(3),
        "N": _push(lambda machine: None),
        "\x88": _push(lambda machine: True),
        "\x89": _push(lambda machine: False),
        ")": _push(lambda machine: ()),
        "]": _push(lambda machine: []),
        "}": _push(lambda machine: {}),
        "\x8f": _push(lambda machine: set()),
        "J": _push(lambda machine: machine._number(_I32)),
        "K": _push(lambda machine: machine._number(_U8)),
        "M": _push(lambda machine: machine._number(_U16)),
        "G": _push(lambda machine: machine._number(_F64)),
        "\x8a": _push(lambda machine: decode_long(machine._read(machine._number(_U8)))),
        "X": WeightsUnpickler._text,
        "U": WeightsUnpickler._old_text,
        "q": lambda machine: machine._put(_U8),
        "r": lambda machine: machine._put(_U32),
        "h": lambda machine: machine._get(_U8),
        "j": lambda machine: machine._get(_U32),
        "\x80": WeightsUnpickler._protocol,
    }.items()
}
