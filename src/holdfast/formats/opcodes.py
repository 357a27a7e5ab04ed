"""The opcodes of pickles, each as a function on an inert stack machine; ``pickles`` holds the loop that runs them."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from holdfast.errors import CorruptFile, RefusedFile
from holdfast.formats.nodes import Call, Dict, Global, Node, Persistent, Set
from holdfast.storage.source import shown

U32 = struct.Struct("<I").unpack_from
_U16 = struct.Struct("<H").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from
INTEGER_LIMIT = 1024
"""Bytes of the largest integer: more could not even be printed within Python's limit of digits."""
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that Python 3 renamed; protocol 2 writes the old names."""


class Machine:
    """What the opcodes work on, beside the stack: the bytes, the memo, and the names seen so far."""

    def __init__(self, data: bytes, file: str) -> None:
        self.data = data
        self.file = file
        self.names: dict[tuple[str, str], Global] = {}
        self.memo: dict[int, Node] = {}
        self.outside: list[Persistent] = []
        self.calls: list[Call] = []

    def wrong(self, pos: int, reason: Exception) -> CorruptFile:
        if pos >= len(self.data):
            what = "ends in the middle"
        else:
            what = f"no pickle goes on like this ({type(reason).__name__} {shown(str(reason))[:100]})"
        return CorruptFile(f"`{shown(self.file)}`: at byte {pos:,} of the pickle: {what}: corrupt", file=self.file)

    def refuse(self, pos: int, what: str) -> RefusedFile:
        """An error about an opcode that could be run but is not."""
        return RefusedFile(f"`{shown(self.file)}`: at byte {pos - 1:,} of the pickle: {what}", file=self.file)

    def take(self, pos: int, length: int) -> bytes:
        """``length`` bytes, all of them or an error."""
        found = self.data[pos : pos + length]
        if len(found) != length:
            raise IndexError("cut short")
        return found

    def line(self, pos: int) -> tuple[bytes, int]:
        """The bytes up to the end of the line, and the first byte of the next."""
        end = self.data.index(b"\n", pos)
        return self.data[pos:end], end + 1

    def name(self, module: str, name: str) -> Global:
        """The node of a name; the same name is the same node."""
        found = self.names.get((module, name))
        if found is None:
            modern = _MODULES.get(module, module)
            found = self.names[module, name] = Global(modern, name, f"{modern}.{name}")
        return found

    def persistent(self, name: Node) -> Persistent:
        """The node of something outside the pickle."""
        node = Persistent(name)
        self.outside.append(node)
        return node

    def call(self, func: Node, args: Node, kwargs: Node = None) -> Call:
        """The node of a call, which stays known when the pickle throws its result away."""
        made = Call(func, args, kwargs=kwargs)
        self.calls.append(made)
        return made

    def integer(self, pos: int, data: bytes) -> int:
        """A little-endian integer of any length below the limit."""
        if len(data) > INTEGER_LIMIT:
            raise self.refuse(pos, f"an integer of {len(data):,} bytes; {INTEGER_LIMIT:,} is the limit")
        return int.from_bytes(data, "little", signed=True)


# -- opcodes, each as (machine, position after the opcode, stack) -> next position

Simple = Callable[[Machine, int, list[Node]], int]
Marked = Callable[[Machine, int, list[Node], list[Node]], int]


def _constant(value: Node) -> Simple:
    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        stack.append(value)
        return pos

    return do


def _fresh(make: Callable[[], Node]) -> Simple:
    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        stack.append(make())
        return pos

    return do


def _fixed(size: int, read: Callable[[bytes, int], tuple[Any, ...]]) -> Simple:
    """A number of ``size`` bytes."""

    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        stack.append(read(machine.data, pos)[0])
        return pos + size

    return do


def _counted(size: int, make: Callable[[Machine, int, bytes], Node]) -> Simple:
    """A length of ``size`` bytes, and as many bytes, out of which ``make`` makes a value."""

    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        start = pos + size
        length = int.from_bytes(machine.take(pos, size), "little")
        stack.append(make(machine, pos, machine.take(start, length)))
        return start + length

    return do


def _textual(make: Callable[[Machine, int, bytes], Node]) -> Simple:
    """A line of text, out of which ``make`` makes a value."""

    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        text, after = machine.line(pos)
        stack.append(make(machine, pos, text))
        return after

    return do


def _old_string(data: bytes) -> str | bytes:
    """A Python 2 string: text where it is UTF-8, as torch.load takes it, bytes where it is not."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _quoted(machine: Machine, pos: int, text: bytes) -> str | bytes:
    if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b'"', b"'"):
        raise ValueError("a string without quotes")
    return _old_string(codecs.escape_decode(text[1:-1])[0])


def _decimal(machine: Machine, pos: int, text: bytes) -> int | bool:
    if text in (b"00", b"01"):
        return text == b"01"
    return int(text.rstrip(b"L"))


def _global(machine: Machine, pos: int, stack: list[Node]) -> int:
    module, pos = machine.line(pos)
    name, pos = machine.line(pos)
    stack.append(machine.name(module.decode(), name.decode()))
    return pos


def _stack_global(machine: Machine, pos: int, stack: list[Node]) -> int:
    name, module = stack.pop(), stack.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError("a name that is no string")
    stack.append(machine.name(module, name))
    return pos


def _tuple_of(count: int) -> Simple:
    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        items = tuple(stack[-count:])
        if len(items) != count:
            raise IndexError("stack underflow")
        stack[-count:] = [items]
        return pos

    return do


def _pop(machine: Machine, pos: int, stack: list[Node]) -> int:
    stack.pop()
    return pos


def _dup(machine: Machine, pos: int, stack: list[Node]) -> int:
    stack.append(stack[-1])
    return pos


def _memoize(machine: Machine, pos: int, stack: list[Node]) -> int:
    machine.memo[len(machine.memo)] = stack[-1]
    return pos


def _long_get(machine: Machine, pos: int, stack: list[Node]) -> int:
    stack.append(machine.memo[U32(machine.data, pos)[0]])
    return pos + 4


def _text_get(machine: Machine, pos: int, text: bytes) -> Node:
    return machine.memo[int(text)]


def _text_put(machine: Machine, pos: int, stack: list[Node]) -> int:
    text, after = machine.line(pos)
    machine.memo[int(text)] = stack[-1]
    return after


def _newobj(machine: Machine, pos: int, stack: list[Node]) -> int:
    args = stack.pop()
    stack[-1] = machine.call(stack[-1], args)
    return pos


def _newobj_ex(machine: Machine, pos: int, stack: list[Node]) -> int:
    kwargs, args = stack.pop(), stack.pop()
    stack[-1] = machine.call(stack[-1], args, kwargs)
    return pos


def _build(machine: Machine, pos: int, stack: list[Node]) -> int:
    state, target = stack.pop(), stack[-1]
    if type(target) is not Call or target.built:
        raise machine.refuse(pos, "sets the state of something that has none, or twice")
    target.state, target.built = state, True
    return pos


def _extend(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
    """APPENDS, and APPEND of one item."""
    target = stack[-1]
    if type(target) is list:
        target.extend(items)
    elif type(target) is Call:
        target.items = [] if target.items is None else target.items
        target.items.extend(items)
    else:
        raise ValueError("appends to what is no list")
    return pos


def _update(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
    """SETITEMS, and SETITEM of one key."""
    target = stack[-1]
    if len(items) % 2:
        raise ValueError("a key without a value")
    if type(target) is Dict:
        target.flat.extend(items)
    elif type(target) is Call:
        target.flat = [] if target.flat is None else target.flat
        target.flat.extend(items)
    else:
        raise ValueError("sets a key of what is no dict")
    return pos


def _append(machine: Machine, pos: int, stack: list[Node]) -> int:
    item = stack.pop()
    return _extend(machine, pos, stack, [item])


def _setitem(machine: Machine, pos: int, stack: list[Node]) -> int:
    value, key = stack.pop(), stack.pop()
    return _update(machine, pos, stack, [key, value])


def _add_items(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
    target = stack[-1]
    if type(target) is not Set or target.frozen:
        raise ValueError("adds to what is no set")
    target.items.extend(items)
    return pos


def _make(make: Callable[[list[Node]], Node]) -> Marked:
    def do(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
        stack.append(make(items))
        return pos

    return do


def _dict_of(items: list[Node]) -> Dict:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return Dict(items)


def _object(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
    stack.append(machine.call(items[0], tuple(items[1:])))
    return pos


def _instance(machine: Machine, pos: int, stack: list[Node], items: list[Node]) -> int:
    pos = _global(machine, pos, stack)
    stack[-1] = machine.call(stack[-1], tuple(items))
    return pos


def _protocol(machine: Machine, pos: int, stack: list[Node]) -> int:
    if machine.data[pos] > 5:
        raise machine.refuse(pos, f"pickle protocol {machine.data[pos]}; 0 to 5 are known")
    return pos + 1


def _frame(machine: Machine, pos: int, stack: list[Node]) -> int:
    if pos + 8 + _U64(machine.data, pos)[0] > len(machine.data):
        raise IndexError("a frame past the end")
    return pos + 8


def _outside(what: str) -> Simple:
    def do(machine: Machine, pos: int, stack: list[Node]) -> int:
        raise machine.refuse(pos, f"refers to {what}, which is not in the file")

    return do


def _string(machine: Machine, pos: int, data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


SIMPLE: dict[int, Simple] = {
    ord(code): do
    for code, do in {
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "]": _fresh(list),
        "}": _fresh(lambda: Dict([])),
        "\x8f": _fresh(lambda: Set([])),
        "M": _fixed(2, _U16),
        "J": _fixed(4, _I32),
        "G": _fixed(8, _F64),
        "I": _textual(_decimal),
        "L": _textual(_decimal),
        "F": _textual(lambda machine, pos, text: float(text)),
        "S": _textual(_quoted),
        "V": _textual(lambda machine, pos, text: str(text, "raw-unicode-escape")),
        "P": _textual(lambda machine, pos, text: machine.persistent(text.decode())),
        "g": _textual(_text_get),
        "p": _text_put,
        "j": _long_get,
        "\x94": _memoize,
        "\x8a": _counted(1, Machine.integer),
        "\x8b": _counted(4, Machine.integer),
        "U": _counted(1, lambda machine, pos, data: _old_string(data)),
        "T": _counted(4, lambda machine, pos, data: _old_string(data)),
        "C": _counted(1, lambda machine, pos, data: data),
        "B": _counted(4, lambda machine, pos, data: data),
        "\x8e": _counted(8, lambda machine, pos, data: data),
        "\x96": _counted(8, lambda machine, pos, data: bytearray(data)),
        "\x8c": _counted(1, _string),
        "\x8d": _counted(8, _string),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "a": _append,
        "s": _setitem,
        "b": _build,
        "\x81": _newobj,
        "\x92": _newobj_ex,
        "c": _global,
        "\x93": _stack_global,
        "0": _pop,
        "2": _dup,
        "\x80": _protocol,
        "\x95": _frame,
        "\x82": _outside("the extension registry"),
        "\x83": _outside("the extension registry"),
        "\x84": _outside("the extension registry"),
        "\x97": _outside("an out-of-band buffer"),
        "\x98": _outside("an out-of-band buffer"),
    }.items()
}

MARKED: dict[int, Marked] = {
    ord(code): do
    for code, do in {
        "e": _extend,
        "u": _update,
        "\x90": _add_items,
        "l": _make(list),
        "d": _make(_dict_of),
        "\x91": _make(lambda items: Set(items, frozen=True)),
        "o": _object,
        "1": lambda machine, pos, stack, items: pos,
        "i": _instance,
    }.items()
}
