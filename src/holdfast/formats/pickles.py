"""Pickles taken apart without running them: opcodes in, inert nodes out.

A pickle is a program for a small stack machine, and two of its instructions import a name and call it. Here both only
make a node that says so: :class:`Global` is a name, :class:`Call` is a function that was not called. Every opcode of
protocols 0 to 5 is understood (https://github.com/python/cpython/blob/3.11/Lib/pickletools.py lists them); those that
reach outside the file (the extension registry, out-of-band buffers) are refused. Time and memory are linear in the
file's bytes: whatever a pickle duplicates is the same node again.
"""

from __future__ import annotations

import struct

import msgspec

from holdfast.formats.nodes import Call, Global, Node, Persistent
from holdfast.formats.opcodes import MARKED, SIMPLE, U32, Machine


class Parsed(msgspec.Struct):
    """One pickle.

    Attributes:
        root: its value.
        end: the first byte after it.
        globals: every name that it would import, in the order of the file.
        outside: every reference to something outside it, in the order of the file.
        calls: every call that it would make, in the order of the file, also those whose results it throws away.
    """

    root: Node
    end: int
    globals: list[Global]
    outside: list[Persistent]
    calls: list[Call]


def parse(data: bytes, file: str, *, start: int = 0) -> Parsed:
    """Reads one pickle.

    Args:
        data: bytes that hold it.
        file: named in errors, with the record: ``model.pt: data.pkl``.
        start: its first byte.

    Raises:
        CorruptFile: it is cut short, or no unpickler could run it.
        RefusedFile: it reaches outside the file, or holds an absurd integer.
    """
    machine = Machine(data, file)
    root, end = run(machine, start)
    return Parsed(root, end, list(machine.names.values()), machine.outside, machine.calls)


def run(machine: Machine, pos: int) -> tuple[Node, int]:  # noqa: C901  # one branch an opcode
    """Runs to the opcode STOP; returns the value and the byte after it.

    The opcodes that torch files consist of stand here, the most frequent first; two tables hold the others.
    """
    data, memo, calls = machine.data, machine.memo, machine.calls
    stack: list[Node] = []
    above: list[list[Node]] = []  # the stacks below each open MARK
    try:
        while True:
            op = data[pos]
            pos += 1
            if op == 0x71:  # BINPUT
                memo[data[pos]] = stack[-1]
                pos += 1
            elif op == 0x72:  # LONG_BINPUT
                memo[U32(data, pos)[0]] = stack[-1]
                pos += 4
            elif op == 0x68:  # BINGET
                stack.append(memo[data[pos]])
                pos += 1
            elif op == 0x28:  # MARK
                above.append(stack)
                stack = []
            elif op == 0x74:  # TUPLE
                above[-1].append(tuple(stack))
                stack = above.pop()
            elif op == 0x58:  # BINUNICODE
                pos += 4
                end = pos + U32(data, pos - 4)[0]
                stack.append(str(data[pos:end], "utf-8", "surrogatepass"))
                pos = end
            elif op == 0x4B:  # BININT1
                stack.append(data[pos])
                pos += 1
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = call = Call(stack[-1], args)
                calls.append(call)
            elif op == 0x51:  # BINPERSID
                stack[-1] = machine.persistent(stack[-1])
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif op == 0x2E:  # STOP
                return stack.pop(), pos
            elif op == 0x30 and not stack:  # POP of an empty stack takes the MARK away
                stack = above.pop()
            elif op in MARKED:
                items, stack = stack, above.pop()
                pos = MARKED[op](machine, pos, stack, items)
            else:
                pos = SIMPLE[op](machine, pos, stack)
    except (LookupError, ValueError, struct.error) as reason:
        raise machine.wrong(pos, reason) from None
