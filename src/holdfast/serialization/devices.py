"""Where loaded tensors go: ``map_location`` in all its forms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from holdfast.errors import ArgumentError, DeviceUnavailable
from holdfast.state.paths import printable

MapLocation = str | torch.device | Mapping[str, str] | Callable[[Any, str], Any] | None

log = logging.getLogger("holdfast")


def present_devices() -> list[str]:
    """The devices of this machine, as map_location takes them: ``["cpu", "cuda:0"]``."""
    devices = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]  # there is one
        devices += [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
    return devices


def is_present(device: torch.device) -> bool:
    """Whether tensors can be put on ``device`` here."""
    if device.type in ("cpu", "meta"):
        return True
    named = f"{device.type}:{device.index or 0}"
    return named in present_devices()


def automatic_device() -> torch.device:
    """The accelerator when there is one, else the CPU."""
    return torch.device(present_devices()[1 if len(present_devices()) > 1 else 0])


class Placement:
    """Decides for each stored location where the bytes go.

    Args:
        map_location: as in torch.load: None, a device or its name, a dict from saved to wanted locations, a
            callable (cpu storage, location) -> storage or None; and ``"auto"``.

    Raises:
        DeviceUnavailable: a device was asked for by name and is not here.
        ArgumentError: a map_location of another type.
    """

    def __init__(self, map_location: MapLocation = None) -> None:
        self._callable: Callable[[Any, str], Any] | None = None
        self._dict: Mapping[str, str] = {}
        self._device: torch.device | None = None
        self._absent: set[str] = set()
        if map_location is None:
            pass
        elif isinstance(map_location, str) and map_location == "auto":
            self._device = automatic_device()
        elif isinstance(map_location, str | torch.device):
            self._device = _explicit(map_location)
        elif isinstance(map_location, Mapping):
            self._dict = map_location
        elif callable(map_location):
            self._callable = map_location
        else:
            raise ArgumentError(
                f"map_location is a {type(map_location).__name__}; it takes None, 'auto', a device or its name, a dict "
                "of them, or a callable (storage, location)"
            )

    def device(self, location: str) -> torch.device:
        """The device for tensors saved at ``location``; a callable decides later, in ``place``."""
        if self._device is not None:
            return self._device
        if location in self._dict:
            return _explicit(self._dict[location])
        try:
            device = torch.device(location)
        except RuntimeError:
            device = None
        if device is not None and is_present(device):
            return device
        if location not in self._absent:
            self._absent.add(location)
            log.warning("tensors were saved on %s, which is not here: loaded on the CPU", printable(location[:80]))
        return torch.device("cpu")

    @property
    def by_callable(self) -> bool:
        """Whether each storage must be shown to the caller's function."""
        return self._callable is not None

    def place(self, storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        """Moves one CPU storage to where it belongs."""
        if self._callable is not None:
            placed = self._callable(storage, location)
            if placed is not None:
                return placed if isinstance(placed, torch.UntypedStorage) else placed.untyped()
        device = self.device(location)
        return (
            storage
            if device.type == "cpu"
            else torch.empty(0, dtype=torch.uint8).set_(storage).to(device).untyped_storage()
        )


def _explicit(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(
            f"map_location names {str(name)!r}, which is no device; here are: {', '.join(present_devices())}"
        ) from None
    if not is_present(device):
        raise DeviceUnavailable(
            f"map_location asks for {device}, which is not here; here are: {', '.join(present_devices())}"
        )
    return device
