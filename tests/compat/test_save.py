"""What programs rely on in torch.save, and what ours does where torch's leaves a broken file."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import threading
import types
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.serialization import config

from holdfast import compat
from holdfast.errors import ArgumentError
from holdfast.formats.zipwriter import plan

SAVES = {"ours": compat.save, "torch": torch.save}


@pytest.fixture(params=SAVES)
def save(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Ours, and torch's."""
    return SAVES[request.param]


def names(data: bytes) -> list[str]:
    return [entry.filename for entry in zipfile.ZipFile(io.BytesIO(data)).infolist()]


def test_the_archive_is_that_of_torch(tmp_path: pathlib.Path) -> None:
    """The same bytes but for the serialization_id, which torch logs and never compares."""
    value = {"w": torch.arange(100.0), "e": torch.empty(0), "b": torch.ones(3, dtype=torch.bool)}
    found = []
    for number, write in enumerate(SAVES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(value, folder / "plain.name.pt")
        found.append((folder / "plain.name.pt").read_bytes())
    assert names(found[0]) == names(found[1])
    assert names(found[0])[0] == "plain.name/data.pkl"
    marker = found[0].index(b".data/serialization_id")
    assert found[0][:marker] == found[1][:marker]
    assert len(found[0]) == len(found[1])


@pytest.mark.parametrize("name", ["a.b.pt", "noext", "m\u00f6del.pt", "x.tar.gz"])
def test_the_folder_inside_is_named_as_torch_names_it(name: str, tmp_path: pathlib.Path) -> None:
    found = []
    for number, write in enumerate(SAVES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(1, folder / name)
        found.append(names((folder / name).read_bytes()))
    assert found[0] == found[1]


class Sink:
    """An object that can only be written to, and takes little at a time."""

    def __init__(self, most: int | None = None) -> None:
        self.data = b""
        self.flushed = False
        self._most = most

    def write(self, data: Any) -> int:
        part = bytes(data)[: self._most]
        self.data += part
        return len(part)

    def flush(self) -> None:
        self.flushed = True


def test_only_write_and_flush_are_called(save: Callable[..., Any]) -> None:
    for zipped in (True, False):
        sink = Sink()
        save([torch.ones(3)], sink, _use_new_zipfile_serialization=zipped)
        assert sink.flushed
        assert torch.load(io.BytesIO(sink.data))[0].tolist() == [1, 1, 1]


def test_a_short_write_is_gone_on_with() -> None:
    """torch ignores how much was taken, and leaves a truncated archive."""
    sink = Sink(most=100)
    compat.save([torch.ones(300)], sink)
    assert torch.load(io.BytesIO(sink.data))[0].tolist() == [1.0] * 300


def test_what_is_no_destination(save: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(AttributeError, match="expected 'f' to be string, path, or a file-like object"):
        save(1, 3)
    with pytest.raises(RuntimeError, match=r"Parent directory .*/none does not exist\."):
        save(1, tmp_path / "none" / "a.pt")
    with pytest.raises(RuntimeError):
        save(1, tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    compat.save({"epoch": 1}, path)
    for bad in (lambda: 1, [torch.ones(2), threading.Lock()]):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            compat.save(bad, path)
    assert compat.load(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_device_is_written_to(tmp_path: pathlib.Path) -> None:
    compat.save([torch.ones(2)], "/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    compat.save([torch.ones(2)], pipe)
    reader.join()
    assert torch.load(io.BytesIO(found[0]))[0].tolist() == [1, 1]


def test_one_storage_under_two_dtypes_is_refused(save: Callable[..., Any]) -> None:
    value = torch.ones(4)
    for zipped in (True, False):
        with pytest.raises(RuntimeError, match="Cannot save multiple tensors or storages that view the same data"):
            save([value, value.view(torch.int32)], io.BytesIO(), _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("alignment", [1, 64, 4096, 65536])
@pytest.mark.parametrize("checked", [True, False])
def test_configuration_is_read_at_each_call(alignment: int, checked: bool) -> None:
    buffer = io.BytesIO()
    with config.patch({"save.storage_alignment": alignment, "save.compute_crc32": checked}):
        compat.save([torch.ones(3), torch.zeros(5)], buffer)
    for entry in zipfile.ZipFile(buffer).infolist():
        assert (entry.CRC != 0) == (checked and entry.file_size > 0)
    with config.patch({"load.calculate_storage_offsets": True}):
        for load in (torch.load, compat.load):
            buffer.seek(0)
            assert [part.tolist() for part in load(buffer)] == [[1.0] * 3, [0.0] * 5]


def test_offsets_can_be_calculated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the record .format_version promises: torch checks each of its own calculations here."""
    path = tmp_path / "model.pt"
    compat.save([torch.ones(3), torch.empty(0), torch.zeros(70), torch.ones(1, dtype=torch.int8)], path)
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    with config.patch({"load.calculate_storage_offsets": True}):
        assert len(torch.load(path)) == len(torch.load(path, mmap=True)) == 4


def test_padding_that_does_not_fit() -> None:
    """torch cuts the length of such a padding to 16 bits."""
    size = (1 - 16 - 34 - len("t/b")) % 65536
    with pytest.raises(ArgumentError, match="alignment 65,536 needs more padding than a zip can have"):
        plan([("a", size), ("b", 1)], "t", alignment=65536)
    assert plan([("a", size + 4), ("b", 1)], "t", alignment=65536)[1].start == 3 * 65536


def test_an_alignment_that_torch_could_not_read_again() -> None:
    with config.patch({"save.storage_alignment": 131072}), pytest.raises(ValueError, match="storage_alignment is 131,"):
        compat.save(1, io.BytesIO())


def test_the_byte_order_can_be_left_out(save: Callable[..., Any]) -> None:
    buffer = io.BytesIO()
    save([torch.ones(2)], buffer, _disable_byteorder_record=True)
    assert "archive/data/0" in names(buffer.getvalue())
    assert compat.load(io.BytesIO(buffer.getvalue()))[0].tolist() == [1, 1]


def test_skip_data_leaves_room(save: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "sparse.pt"
    with torch.serialization.skip_data():
        save({"w": torch.ones(64 << 20, dtype=torch.uint8)}, path)
    assert path.stat().st_size > 64 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    for load in (torch.load, compat.load):
        assert not load(path, mmap=True)["w"].any()
    with torch.serialization.skip_data(), pytest.raises(RuntimeError, match="Cannot use skip_data=True"):
        save(1, path, _use_new_zipfile_serialization=False)


def test_pickle_module_and_protocol(save: Callable[..., Any]) -> None:
    used = []

    class Pickler(pickle.Pickler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            used.append(kwargs["protocol"])
            super().__init__(*args, **kwargs)

    module = types.SimpleNamespace(Pickler=Pickler, dump=pickle.dump, __name__="mine")
    for zipped in (True, False):
        buffer = io.BytesIO()
        save({"w": torch.ones(2)}, buffer, module, 4, _use_new_zipfile_serialization=zipped)
        for load in (torch.load, compat.load):
            buffer.seek(0)
            assert load(buffer, weights_only=False)["w"].tolist() == [1, 1]
    assert used == [4, 4]


def test_an_old_dill_is_refused() -> None:
    module = types.SimpleNamespace(__name__="dill", __version__="0.2.9", Pickler=pickle.Pickler, Unpickler=None)
    for call in (torch.save, compat.save):
        with pytest.raises(ValueError, match=r"'torch' supports dill >= 0\.3\.1, but you have dill 0\.2\.9"):
            call(1, io.BytesIO(), module)
    for load in (torch.load, compat.load):
        with pytest.raises(ValueError, match=r"'torch' supports dill >= 0\.3\.1"):
            load(io.BytesIO(b"x"), pickle_module=module, weights_only=False)


def test_two_saves_are_the_same_bytes() -> None:
    for zipped in (True, False):
        found = []
        for _ in range(2):
            buffer = io.BytesIO()
            compat.save({"a": torch.ones(3), "b": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=zipped)
            found.append(buffer.getvalue())
        assert found[0] == found[1]
