"""Copies between an accelerator and pinned memory of the host, on a stream beside the program's own.

No wait of the host is in here. What the program does next on the device waits for the copies that it would disturb, on
the device, by an event; who reads or writes the pinned memory waits for the event on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def pinned_memory(size: int) -> memoryview:
    """Fresh page-locked memory of the host: the device reads and writes it by itself."""
    pinned: Any = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memoryview(pinned)


def has_streams(device: torch.device) -> bool:
    """Whether a device copies while it computes."""
    return device.type not in ("cpu", "meta", "mps") and hasattr(torch.get_device_module(device), "Stream")


def program_stream(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """The stream on which this thread works now, for other threads: ``with stream(): ...`` comes after what it started.

    A thread that is not told works on the device's default stream, which waits for no other.
    """
    if not has_streams(device):
        return nullcontext
    api = torch.get_device_module(device)
    stream = api.current_stream(device)
    return lambda: api.stream(stream)


class SideStream:
    """A stream of one device, for copies.

    Args:
        device: which.
        api: its part of torch, such as ``torch.cuda``.
    """

    def __init__(self, device: torch.device, api: Any = None) -> None:
        self._device = device
        self._api = torch.get_device_module(device) if api is None else api
        self._stream = self._api.Stream(device)

    def begin(self) -> None:
        """Lets the copies that follow come after everything that the program has started up to now."""
        self._stream.wait_stream(self._api.current_stream(self._device))

    def copy_out(self, tensor: torch.Tensor, into: memoryview) -> None:
        """Starts to copy the row-major bytes of a tensor. Both must live until the copy has ended."""
        target = torch.frombuffer(into, dtype=torch.uint8)
        with self._api.stream(self._stream):
            target.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8), non_blocking=True)

    def copy_in(self, copies: Iterable[tuple[memoryview, torch.Tensor]]) -> None:
        """Starts to copy memory into tensors of bytes, from any thread. All must live until the copies have ended."""
        with self._api.stream(self._stream):
            for data, target in copies:
                target.copy_(torch.frombuffer(data, dtype=torch.uint8), non_blocking=True)

    def mark(self) -> Any:
        """An event that comes when the copies so far have ended; ``synchronize()`` waits for it on the host."""
        return self._stream.record_event()

    def hold_back(self, event: Any) -> None:
        """What the program starts from now on waits for the event, on the device."""
        self._api.current_stream(self._device).wait_event(event)
