from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.errors import ArgumentError, DeviceUnavailable
from holdfast.serialization.devices import Placement, automatic_device, is_present, present_devices


@pytest.fixture
def file(tmp_path: Path) -> Path:
    holdfast.save({"a": torch.ones(3), "b": [torch.arange(4)], "np": __import__("numpy").arange(2)}, tmp_path / "f.pt")
    return tmp_path / "f.pt"


def saved_on(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of torch.save whose tensors carry another machine's device."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: device)
        torch.save({"a": torch.ones(3), "b": torch.zeros(2), "n": 1}, tmp_path / "away.pt")
    return tmp_path / "away.pt"


@pytest.mark.parametrize("where", [None, "cpu", torch.device("cpu"), {}, {"cpu": "cpu"}, {"cuda:0": "cpu"}, "auto"])
def test_forms_that_end_on_what_is_here(file: Path, where: Any) -> None:
    loaded = holdfast.load(file, where)
    assert torch.equal(loaded["a"].cpu(), torch.ones(3))
    assert loaded["np"].tolist() == [0, 1]


def test_meta_takes_the_shapes_only(file: Path) -> None:
    stream = io.BytesIO()
    holdfast.save({"a": torch.ones(3), "tied": [torch.ones(2)] * 2}, stream)
    stream.seek(0)
    loaded = holdfast.load(stream, "meta")
    assert loaded["a"].is_meta
    assert loaded["tied"][1].is_meta
    assert loaded["a"].shape == (3,)


def test_a_callable_sees_each_storage_and_may_leave_it(file: Path) -> None:
    seen: list[tuple[int, str]] = []

    def where(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
        seen.append((storage.nbytes(), location))
        return storage if storage.nbytes() == 12 else None

    loaded = holdfast.load(file, where)
    assert torch.equal(loaded["a"], torch.ones(3))
    assert torch.equal(loaded["b"][0], torch.arange(4))
    assert sorted(seen)[:1] == [(12, "cpu")]


def test_a_callable_may_put_the_storage_elsewhere(file: Path) -> None:
    loaded = holdfast.load(file, lambda storage, location: storage.clone())
    assert torch.equal(loaded["a"], torch.ones(3))


def test_a_device_that_is_not_here_is_refused_by_name(file: Path) -> None:
    absent = "cuda:97"
    message = rf"map_location asks for {absent}, which is not here; here are: {', '.join(present_devices())}"
    for where in (absent, torch.device(absent), {"cpu": absent}):
        with pytest.raises(DeviceUnavailable, match=message):
            holdfast.load(file, where)


def test_what_is_no_device(file: Path) -> None:
    with pytest.raises(ArgumentError, match=r"map_location names 'warp:0', which is no device; here are: cpu"):
        holdfast.load(file, "warp:0")
    with pytest.raises(ArgumentError, match=r"map_location is a int; it takes None, 'auto', a device or"):
        holdfast.load(file, 5)  # type: ignore[arg-type]


def test_an_absent_saved_device_arrives_on_the_cpu_with_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved_on("cuda:97", tmp_path, monkeypatch)
    with caplog.at_level(logging.WARNING, "holdfast"):
        loaded = holdfast.load(file)
    assert loaded["a"].device.type == "cpu"
    assert torch.equal(loaded["a"], torch.ones(3))
    assert [record.getMessage() for record in caplog.records] == [
        "tensors were saved on cuda:97, which is not here: loaded on the CPU"
    ]


def test_a_dict_maps_the_absent_device_without_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved_on("cuda:97", tmp_path, monkeypatch)
    assert torch.equal(holdfast.load(file, {"cuda:97": "cpu"})["a"], torch.ones(3))
    assert caplog.records == []


def test_a_location_out_of_a_hostile_file_is_shortened_and_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved_on("\x1b[2J" + "x" * 1000, tmp_path, monkeypatch)
    holdfast.load(file)
    (message,) = [record.getMessage() for record in caplog.records]
    assert len(message) < 250
    assert "\x1b" not in message


def test_restore_keeps_the_live_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = torch.nn.ParameterDict({"w": torch.zeros(3)})
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:97")
        torch.save({"state_dict": {"w": torch.ones(3)}}, tmp_path / "away.pt")
    holdfast.restore(tmp_path / "away.pt", model=live)
    assert torch.equal(live["w"], torch.ones(3))


def test_what_is_here() -> None:
    assert present_devices()[0] == "cpu"
    assert is_present(torch.device("cpu"))
    assert not is_present(torch.device("cuda:97"))
    assert str(automatic_device()) in present_devices()
    assert Placement("auto").device("cuda:97") == automatic_device()
