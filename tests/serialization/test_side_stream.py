"""Threads that read an accelerator see what the program has started, on whichever stream it works."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import holdfast
from holdfast.serialization import memory, side_stream
from holdfast.serialization.side_stream import has_streams
from tests.training.late_stream import Api, Stream


class Reading(Api):
    """Work on a stream is done after all that was started there; a stand-in for ``tensor.to("cpu")`` on it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[Stream] = []

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.entered.append(stream)
        stream.record_event().synchronize()
        yield


@pytest.mark.parametrize("told", [True, False])
def test_a_save_comes_after_what_was_started(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Reading()
    if told:
        monkeypatch.setattr(side_stream, "has_streams", lambda _: True)
        monkeypatch.setattr(torch, "get_device_module", lambda _: api)
    rows = torch.zeros(4000, 100)[:, ::2]
    api.current.start(lambda: rows.fill_(1))
    file = io.BytesIO()
    sources: list[memory.TensorSource] = []
    plain = memory.TensorSource.__init__

    def noted(self: memory.TensorSource, tensor: torch.Tensor, name: str = "tensor") -> None:
        plain(self, tensor, name)
        sources.append(self)

    monkeypatch.setattr(memory.TensorSource, "__init__", noted)
    holdfast.save({"rows": rows}, file)
    file.seek(0)
    assert sources
    assert bool(holdfast.load(file)["rows"].all()) is told
    assert set(api.entered) == ({api.current} if told else set())


@pytest.mark.parametrize("device", ["cpu", "meta", "mps"])
def test_devices_without_streams(device: str) -> None:
    assert not has_streams(torch.device(device))


def test_a_device_with_streams() -> None:
    assert has_streams(torch.device("cuda:0"))
