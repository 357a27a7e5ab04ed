"""Tensors of an accelerator on their way to pinned memory of the host, on a stream beside the training's own.

The host never waits here. What the training does next on the device waits for the copies that it would disturb, on the
device, by an event; who reads the pinned memory waits for the event on the host.
"""

from __future__ import annotations

from typing import Any

import torch


def pinned_memory(size: int) -> memoryview:
    """Fresh page-locked memory of the host: the device copies into it by itself."""
    pinned: Any = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memoryview(pinned)


def can_offload(device: torch.device) -> bool:
    """Whether a device has streams, so that it copies while it computes."""
    return device.type not in ("cpu", "meta", "mps") and hasattr(torch.get_device_module(device), "Stream")


class Offload:
    """A side stream of one device.

    Args:
        device: which.
        api: its part of torch, such as ``torch.cuda``.
    """

    def __init__(self, device: torch.device, api: Any = None) -> None:
        self._device = device
        self._api = torch.get_device_module(device) if api is None else api
        self._stream = self._api.Stream(device)

    def begin(self) -> None:
        """Lets the copies that follow see everything that the training has started up to now."""
        self._stream.wait_stream(self._api.current_stream(self._device))

    def copy(self, tensor: torch.Tensor, into: memoryview) -> None:
        """Starts to copy the row-major bytes of a tensor. Both must live until the copy has ended."""
        target = torch.frombuffer(into, dtype=torch.uint8)
        with self._api.stream(self._stream):
            target.copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8), non_blocking=True)

    def mark(self) -> Any:
        """An event that comes when the copies so far have ended; ``synchronize()`` waits for it on the host."""
        return self._stream.record_event()

    def hold_back(self, event: Any) -> None:
        """What the training starts from now on waits for the event, on the device."""
        self._api.current_stream(self._device).wait_event(event)
