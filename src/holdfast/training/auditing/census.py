"""What a program holds, and under which names: the frames that run, the globals of its modules, and what hangs there.

For an audit, when a user asks for one. Nothing is kept: what a survey found lives as long as the survey.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, FunctionType, GeneratorType, ModuleType
from typing import Any

import torch
from torch import nn

_DEPTH = 8
_ITEMS = 1000
"""Elements of a list or dict that are looked at: more are data, not objects of a training."""
_NODES = 300_000
_OWN_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD = tuple({sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib")})
_LEAVES = (str, bytes, int, float, complex, type(None), type, ModuleType, torch.Tensor, CodeType)


class Survey:
    """Everything that the program's own code holds at this moment.

    Attributes:
        names: the shortest name that leads to an object, by its id: ``scaler``, ``trainer.ema``.
        held: the objects with a name.
        tracked: everything alive that the garbage collector knows of, after a collection.
    """

    def __init__(self) -> None:
        gc.collect()  # what is dead and not yet taken away is not alive
        self.tracked = gc.get_objects()
        self._modules = _own_modules()
        self.names: dict[int, str] = {}
        self.held: list[Any] = []
        self._walk()

    def is_own(self, cls: type) -> bool:
        """Whether a class is defined in the program itself, not in an installed package."""
        return home(cls) in self._modules

    def name_of(self, obj: Any) -> str | None:
        """The name under which the program reaches an object, or None."""
        return self.names.get(id(obj))

    def _walk(self) -> None:
        todo = deque((name, value, 0) for name, value in self._roots())
        while todo and len(self.held) < _NODES:
            name, value, depth = todo.popleft()
            cls = type(value)  # not isinstance: a proxy would answer for what it stands for, and maybe fetch it
            if issubclass(cls, _LEAVES) or id(value) in self.names or home(cls).startswith("holdfast."):
                continue
            self.names[id(value)] = name
            self.held.append(value)
            if depth < _DEPTH:
                todo.extend((inner, part, depth + 1) for inner, part in self._parts(name, value))

    def _roots(self) -> Iterator[tuple[str, Any]]:
        """Local variables first, innermost frame first: what a user would type."""
        for frame in _frames():
            if frame.f_globals.get("__name__") in self._modules:
                yield from _locals(frame)
        for module in self._modules.values():
            yield from vars(module).items()

    def _parts(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        cls = type(value)
        if issubclass(cls, dict):
            return ((f"{name}[{_key(key)}]", part) for key, part in _first(value.items()))
        if issubclass(cls, list | tuple | set | frozenset | deque):
            return ((f"{name}[{index}]", part) for index, part in enumerate(_first(value)))
        if cls is FunctionType:
            return self._closure(value)
        if cls is GeneratorType:
            frame = value.gi_frame
            own = frame is not None and frame.f_globals.get("__name__") in self._modules
            return _locals(frame) if own else ()
        return ((f"{name}.{key}", part) for key, part in attributes(value))

    def _closure(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        if function.__module__ in self._modules:
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
                try:
                    yield name, cell.cell_contents
                except ValueError:  # not bound yet
                    continue


def home(cls: type) -> str:
    """The module that a class says it is defined in."""
    module = cls.__module__
    return module if isinstance(module, str) else ""


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Instance attributes, without asking the object: no property runs. A loader's iterator is its own business."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return
    if not isinstance(found, dict):
        return
    skipped: tuple[str, ...] = ()
    if issubclass(type(value), nn.Module):
        skipped = ("_modules", "_parameters", "_buffers")
        yield from list(found.get("_modules", {}).items())
    elif issubclass(type(value), torch.utils.data.DataLoader):
        skipped = ("_iterator",)
    yield from ((key, part) for key, part in list(found.items()) if key not in skipped)


def _key(key: Any) -> str:
    return repr(key)[:60] if isinstance(key, str | int) else type(key).__name__


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for _, item in zip(range(_ITEMS), list(items), strict=False)]


def _frames() -> Iterator[FrameType]:
    """Every frame that runs, this thread's first, innermost first."""
    mine = inspect.currentframe()
    others = [frame for frame in sys._current_frames().values() if not _same_thread(frame, mine)]
    starts = [mine, *others]
    for start in starts:
        frame = start
        while frame is not None:
            yield frame
            frame = frame.f_back


def _same_thread(frame: FrameType, mine: FrameType | None) -> bool:
    while mine is not None:
        if mine is frame:
            return True
        mine = mine.f_back
    return False


def _locals(frame: FrameType) -> list[tuple[str, Any]]:
    """A frame's local variables. Before Python 3.13 the frame keeps a copy of them, which is emptied again."""
    snapshot = frame.f_locals
    found = list(snapshot.items())
    is_copy = type(snapshot) is dict and bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)
    # 3: the frame's, this function's and the argument's; more, and the program itself holds it, by locals(). A tracer
    # writes the copy back into the variables.
    if is_copy and sys.gettrace() is None and sys.getrefcount(snapshot) <= 3:
        snapshot.clear()
    return found


def _own_modules() -> dict[str, ModuleType]:
    """The modules of the program itself: neither installed, nor Python's, nor holdfast's."""
    found = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and _is_own(name, vars(module).get("__file__")):
            found[name] = module
    return found


def _is_own(name: str, file: Any) -> bool:
    if not isinstance(file, str):
        return name == "__main__"  # typed in, or a notebook
    path = os.path.abspath(file)
    if path.startswith((_OWN_FOLDER + os.sep, *_STANDARD)):
        return False
    return not any(part in path for part in _INSTALLED)
