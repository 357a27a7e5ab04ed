"""That it is ours that reads and writes, that the table of allowed names is torch's, and what torch lets pass."""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import _weights_only_unpickler, nn

from holdfast import compat
from holdfast.compat.allowed import BLOCKED_MODULES, allowed_globals
from holdfast.formats import legacy


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own readers, writers and unpickler raise when they are used."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch's own implementation was used")

    monkeypatch.setattr(torch._C, "PyTorchFileReader", refuse)
    monkeypatch.setattr(torch._C, "PyTorchFileWriter", refuse)
    for name in ("_save", "_load", "_legacy_save", "_legacy_load", "_open_file_like", "_open_zipfile_writer"):
        monkeypatch.setattr(torch.serialization, name, refuse)
    monkeypatch.setattr(_weights_only_unpickler, "Unpickler", refuse)
    monkeypatch.setattr(_weights_only_unpickler, "load", refuse)
    monkeypatch.setattr(torch, "save", compat.save)
    monkeypatch.setattr(torch, "load", compat.load)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_that_only_knows_torch(zipped: bool, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth.tar"
    state = {"epoch": 3, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    assert (loaded["epoch"], loaded["best"]) == (3, 0.5)
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    other.load_state_dict(loaded["model"])
    torch.optim.AdamW(other.parameters()).load_state_dict(loaded["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert loaded["model"]._metadata == net.state_dict()._metadata
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    assert type(torch.load(path, weights_only=False)[1]) is nn.BatchNorm1d


def test_the_table_of_allowed_names_is_that_of_torch() -> None:
    theirs = _weights_only_unpickler._get_allowed_globals()
    ours = allowed_globals()
    assert set(theirs) <= set(ours)
    extra = {name: value for name, value in ours.items() if name not in theirs}
    assert all(isinstance(value, torch.dtype) for value in extra.values()), extra
    for name, value in theirs.items():
        assert ours[name] is value or type(value) is torch.serialization.StorageType, name
    assert set(_weights_only_unpickler._blocklisted_modules) == BLOCKED_MODULES


# -- what is wrong with a file


def zipped(pickled: bytes, storage: bytes = bytes(12)) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3\n")
    buffer.seek(0)
    return buffer


PID = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x03tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + PID + b"K%c(K%ct(K\x01t\x89ccollections\nOrderedDict\n)RtR"

LIES: dict[str, tuple[bytes, type[Exception], str]] = {
    "reaches past its storage": (b"\x80\x02" + TENSOR % (0, 9) + b".", RuntimeError, "resiz|out of bounds"),
    "unknown opcode": (b"\x80\x02\x95.", pickle.UnpicklingError, "Unsupported operand 149"),
    "appends to a tuple": (b"\x80\x02)Na.", pickle.UnpicklingError, "Can only append to lists, but got .*tuple"),
    "extends a dict": (b"\x80\x02}(Ne.", pickle.UnpicklingError, "Can only extend lists, but got .*dict"),
    "sets a key of a list": (b"\x80\x02]NNs.", pickle.UnpicklingError, "Can only SETITEM for dict"),
    "sets keys of a list": (b"\x80\x02](NNu.", pickle.UnpicklingError, "Can only SETITEMS for dict"),
    "calls a value": (b"\x80\x02K\x01)R.", pickle.UnpicklingError, "Trying to call reduce for unrecognized function 1"),
    "makes a function": (b"\x80\x02K\x01)\x81.", pickle.UnpicklingError, "Can only create new object for nn.Parameter"),
    "builds a list": (
        b"\x80\x02]}b.",
        pickle.UnpicklingError,
        "Can only build Tensor, Parameter, OrderedDict or types",
    ),
    "id of text": (b"\x80\x02X\x01\0\0\x000Q.", pickle.UnpicklingError, "persistent_load id must be tuple or int"),
    "id of a module": (
        b"\x80\x02(X\x06\0\0\0moduleNNNtQ.",
        pickle.UnpicklingError,
        "Only persistent_load of storage is allowed",
    ),
    "nested tensors": (
        b"\x80\x02ctorch.nested._internal.nested_tensor\n_rebuild_njt\n.",
        pickle.UnpicklingError,
        "``torch.nested`` and ``torch._dynamo`` must be imported",
    ),
    "distributed tensors": (
        b"\x80\x02ctorch.distributed.tensor\nDTensor\n.",
        pickle.UnpicklingError,
        "``torch.distributed.tensor`` must be imported",
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("load", [compat.load, torch.load], ids=["ours", "torch"])
def test_refusals_have_the_type_and_text_of_torch(lie: str, load: Callable[..., Any]) -> None:
    data, error, text = LIES[lie]
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # modules of torch that other tests imported add names of their own
    try:
        with pytest.raises(error, match=text) as caught:
            load(zipped(data), weights_only=True)
    finally:
        torch.serialization.add_safe_globals(allowed)
    if error is pickle.UnpicklingError:
        assert str(caught.value).startswith("Weights only load failed")


CUT: dict[str, tuple[bytes, type[Exception], str]] = {
    "cut": (b"\x80\x02X\xff\0\0\0abc", EOFError, "the pickle is cut short"),
    "cut name": (b"\x80\x02ctorch", EOFError, "the pickle is cut short"),
    "unknown memo": (b"\x80\x02h\x05.", pickle.UnpicklingError, "Memo value not found at index 5"),
    "tuple of too little": (b"\x80\x02N\x86.", pickle.UnpicklingError, "takes more from the stack than it put there"),
    "empty stack": (b"\x80\x02.", pickle.UnpicklingError, "takes more from the stack than it put there"),
    "no mark": (b"\x80\x02t.", pickle.UnpicklingError, "takes more from the stack than it put there"),
}


@pytest.mark.parametrize("lie", CUT)
def test_damaged_pickles(lie: str) -> None:
    """Where torch raises a bare KeyError, IndexError or struct.error."""
    data, error, text = CUT[lie]
    with pytest.raises(error, match=text):
        compat.load(zipped(data), weights_only=True)


def test_a_flipped_byte_is_noticed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.arange(100.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<2f", 50.0, 51.0))] ^= 1
    path.write_bytes(data)
    assert torch.load(path)["w"][50] != 50.0
    with pytest.raises(RuntimeError, match=r"failed reading zip archive: .*at byte 704: .*corrupt"):
        compat.load(path)


def test_a_cut_file_is_an_error_of_torch(tmp_path: pathlib.Path) -> None:
    for layout in (True, False):
        buffer = io.BytesIO()
        compat.save([torch.ones(100)], buffer, _use_new_zipfile_serialization=layout)
        text = "PytorchStreamReader failed reading zip archive" if layout else "The file might be corrupted"
        for size in (60, 500):
            with pytest.raises(RuntimeError, match=text) as caught:
                compat.load(io.BytesIO(buffer.getvalue()[:size]))
            assert caught.value.__cause__ is not None


def test_one_key_under_two_dtypes_is_refused() -> None:
    """torch gives the first storage for both, and reinterprets its bytes."""
    ints = PID.replace(b"FloatStorage", b"IntStorage")
    data = b"\x80\x02(" + PID + ints + b"t."
    assert torch.load(zipped(data))[1].dtype == torch.float32
    with pytest.raises(RuntimeError, match=r"said to hold torch\.float32 and torch\.int32; one of them is a lie"):
        compat.load(zipped(data))


def test_storages_that_are_not_there() -> None:
    with pytest.raises(RuntimeError, match="has no storage 7"):
        compat.load(zipped(b"\x80\x02" + PID.replace(b"\x000X", b"\x007X") + b"."))
    with pytest.raises(RuntimeError, match="should have 12 bytes, the file has 4"):
        compat.load(zipped(b"\x80\x02" + PID + b".", bytes(4)))


def test_a_tensor_of_a_stream_that_would_grow_its_storage() -> None:
    pickled = b"\x80\x02" + TENSOR.replace(b"K\x03tQ", b"K\x03NtQ") % (0, 200) + b"."
    frame = b"".join(request.source for request in legacy.stream_requests(pickled, []))  # type: ignore[misc]
    frame = frame.replace(b"\x80\x02](e.", b"\x80\x02](X\x01\0\0\x000e.") + struct.pack("<q3f", 3, 1, 2, 3)
    with pytest.raises(RuntimeError, match="storage has wrong byte size: expected 12 got 800"):
        compat.load(io.BytesIO(frame))


def test_an_unknown_byte_order() -> None:
    buffer = zipped(b"\x80\x02" + PID + b".")
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/byteorder", "middle")
    for load in (compat.load, torch.load):
        buffer.seek(0)
        with pytest.raises(ValueError, match="Unknown endianness type: middle"):
            load(buffer)


@pytest.mark.parametrize("weights_only", [True, False])
def test_what_is_no_file_of_torch(weights_only: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("<html><body>404</body></html>")
    with pytest.raises(pickle.UnpicklingError, match=r"invalid load key, '<'\..*web page"):
        compat.load(path, weights_only=weights_only)
    path.write_bytes(b"")
    with pytest.raises(EOFError, match="Ran out of input"):
        compat.load(path, weights_only=weights_only)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RuntimeError, match=r"Invalid magic number; corrupt file\?"):
        compat.load(path, weights_only=weights_only)
    with pytest.raises(FileNotFoundError):
        compat.load(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        compat.load(tmp_path)


def test_a_file_that_can_not_seek() -> None:
    class Forward(io.RawIOBase):
        def readable(self) -> bool:
            return True

    for load in (compat.load, torch.load):
        with pytest.raises(io.UnsupportedOperation, match=r"You can only torch\.load from a file that is seekable"):
            load(Forward())
        with pytest.raises(AttributeError, match=r"You can only torch\.load from a file that is seekable"):
            load(collections.UserList())


def test_nothing_is_left_behind_by_a_load_that_fails() -> None:
    data = b"\x80\x02ctorch._utils\n_nothing\n."
    with pytest.raises(pickle.UnpicklingError):
        compat.load(zipped(data), map_location="cpu")
    assert torch.serialization._serialization_tls.map_location is None


def test_sparse_indices_outside_their_tensor_are_refused() -> None:
    value = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,))
    value._indices()[0, 1] = 900
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    with pytest.raises(RuntimeError, match="size is inconsistent with indices"):
        compat.load(buffer)


class Dumped(nn.Module):
    """Saved with another source than it has now."""


def test_a_class_that_was_written_otherwise() -> None:
    buffer = io.BytesIO()
    compat.save(Dumped(), buffer, _use_new_zipfile_serialization=False)
    changed = buffer.getvalue().replace(b"Saved with another", b"Saved with aNOTHER")
    for load in (compat.load, torch.load):
        with pytest.warns(torch.serialization.SourceChangeWarning, match="source code of class '.*Dumped' has changed"):
            load(io.BytesIO(changed), weights_only=False)
    made = type("Made", (nn.Module,), {})
    globals()["Made"] = made
    made.__module__ = __name__
    for save in (compat.save, torch.save):
        with pytest.warns(UserWarning, match="Couldn't retrieve source code for container of type Made"):
            save(made(), io.BytesIO(), _use_new_zipfile_serialization=False)
