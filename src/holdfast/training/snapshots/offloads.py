"""The side streams of all accelerators, and the pinned memory that they copy into; kept from one save to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from holdfast.serialization.side_stream import SideStream, has_streams, pinned_memory
from holdfast.training.snapshots.sources import SnapshotSource
from holdfast.training.snapshots.staging import Staging


class Offloads:
    """Copies what a snapshot has on accelerators, without a wait of the host.

    Args:
        make: gives the side stream of a device.
        memory: gives memory that a device copies into by itself.
    """

    def __init__(
        self,
        make: Callable[[torch.device], SideStream] = SideStream,
        memory: Callable[[int], memoryview] = pinned_memory,
    ) -> None:
        self._make = make
        self._staging = Staging(memory)
        self._streams: dict[torch.device, SideStream] = {}

    def takes(self, source: SnapshotSource) -> bool:
        """Whether the bytes of a source lie where they can be copied from beside other work."""
        return source.tensor is not None and has_streams(source.tensor.device)

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
            stream = self._streams.get(device) or self._streams.setdefault(device, self._make(device))
            stream.begin()
            free = [source for source in members if not source.owners]
            if free:
                stream.hold_back(self._copy(stream, free))
            self._copy(stream, [source for source in members if source.owners])

    def _copy(self, stream: SideStream, sources: Sequence[SnapshotSource]) -> Any:
        copies = []
        for source in sources:
            if source.tensor is not None:
                into = self._staging.take(source.size)
                stream.copy_out(source.tensor, into)
                copies.append((source, into))
        event = stream.mark()
        for source, into in copies:
            source.read_from(into, event)
        return event

    def hold_back(self, sources: Iterable[SnapshotSource]) -> None:
        """Before a step: what changes these sources waits for their copies, on the device."""
        events = {id(source.event): source for source in sources}
        for source in events.values():
            if source.tensor is not None:
                self._streams[source.tensor.device].hold_back(source.event)

    def give_back(self) -> None:
        """The pinned memory is free for the next snapshot."""
        self._staging.give_back()
