"""The side streams of all accelerators, and the pinned memory that they copy into; kept from one save to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from holdfast.serialization.offload import Offload, can_offload, pinned_memory
from holdfast.training.sources import SnapshotSource
from holdfast.training.staging import Staging


class Offloads:
    """Copies what a snapshot has on accelerators, without a wait of the host.

    Args:
        make: gives the side stream of a device.
        memory: gives memory that a device copies into by itself.
    """

    def __init__(
        self,
        make: Callable[[torch.device], Offload] = Offload,
        memory: Callable[[int], memoryview] = pinned_memory,
    ) -> None:
        self._make = make
        self._staging = Staging(memory)
        self._offloads: dict[torch.device, Offload] = {}

    def takes(self, source: SnapshotSource) -> bool:
        """Whether the bytes of a source lie where they can be copied from beside other work."""
        return source.tensor is not None and can_offload(source.tensor.device)

    def start(self, sources: Iterable[SnapshotSource]) -> None:
        """Starts all copies: first of what anything may change, then of what optimizers own.

        What the training starts from now on waits for the first kind, on the device. For the second it waits when
        :meth:`hold_back` says so, before a step.
        """
        of_device: dict[torch.device, list[SnapshotSource]] = {}
        for source in sources:
            if source.tensor is not None:
                of_device.setdefault(source.tensor.device, []).append(source)
        for device, members in of_device.items():
            offload = self._offloads.get(device) or self._offloads.setdefault(device, self._make(device))
            offload.begin()
            free = [source for source in members if not source.owners]
            if free:
                offload.hold_back(self._copy(offload, free))
            self._copy(offload, [source for source in members if source.owners])

    def _copy(self, offload: Offload, sources: Sequence[SnapshotSource]) -> Any:
        copies = []
        for source in sources:
            if source.tensor is not None:
                into = self._staging.take(source.size)
                offload.copy(source.tensor, into)
                copies.append((source, into))
        event = offload.mark()
        for source, into in copies:
            source.read_from(into, event)
        return event

    def hold_back(self, sources: Iterable[SnapshotSource]) -> None:
        """Before a step: what changes these sources waits for their copies, on the device."""
        events = {id(source.event): source for source in sources}
        for source in events.values():
            if source.tensor is not None:
                self._offloads[source.tensor.device].hold_back(source.event)

    def give_back(self) -> None:
        """The pinned memory is free for the next snapshot."""
        self._staging.give_back()
