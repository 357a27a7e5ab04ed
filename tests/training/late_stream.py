"""A stand-in for the part of torch that belongs to a device, whose streams do their work as late as they may.

A copy on a stream of it runs when somebody waits for its event or for its stream, not when it is started. So a wait
that is missing shows as bytes of another moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Late(TorchFunctionMode):
    """Puts every copy_ of this thread off."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            self._stream.start(lambda: args[0].copy_(args[1]))
            return args[0]
        return func(*args, **(kwargs or {}))


class Stream:
    """Work in its order; ``run`` does what is due, once."""

    def __init__(self, *_: Any) -> None:
        self._lock = threading.Lock()
        self._started: list[Callable[[], Any]] = []
        self._done = 0
        self.waited_for: list[Any] = []

    def start(self, work: Callable[[], Any]) -> None:
        with self._lock:
            self._started.append(work)

    def run(self, length: int) -> None:
        with self._lock:
            for index in range(self._done, length):
                self._started[index]()
                self._started[index] = lambda: None  # lets go of the memory
            self._done = max(self._done, length)

    @property
    def waiting(self) -> int:
        """How many pieces of work have not run."""
        return len(self._started) - self._done

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)
        other.record_event().synchronize()

    def wait_event(self, event: Event) -> None:
        event.synchronize()  # what comes next on this stream runs after it

    def record_event(self) -> Event:
        with self._lock:
            return Event(self, len(self._started))


class Event:
    def __init__(self, stream: Stream, length: int) -> None:
        self._stream = stream
        self._length = length
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1
        self._stream.run(self._length)


class Api:
    """The part of torch that belongs to the device, as far as it is used.

    Attributes:
        current: the stream on which the program works.
        made: the streams beside it.
    """

    def __init__(self) -> None:
        self.current = Stream()
        self.made: list[Stream] = []

    def Stream(self, _: torch.device) -> Stream:  # noqa: N802  # torch's name
        self.made.append(Stream())
        return self.made[-1]

    def current_stream(self, _: torch.device) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        with Late(stream):
            yield
