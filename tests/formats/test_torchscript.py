"""Weights of TorchScript and torch.export archives: what torch's own loaders give, without running either."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.errors import CorruptFile, HoldfastError, UnknownFormat
from holdfast.formats.base import Container
from holdfast.formats.detect import open_container, open_path
from holdfast.serialization.reading import read_tree, verify_segments
from holdfast.spec import BY_EXPORT
from holdfast.storage.source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Net(nn.Module):
    """Submodules, one of them under two names, buffers of both kinds, and a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.again = self.fc
        self.norm = nn.BatchNorm1d(2)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1, bias=False)])
        self.register_buffer("scale", torch.full((2,), 3.0))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.shift = torch.arange(2.0)
        self.scale: torch.Tensor
        self.hidden: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.again(x)) * self.scale + self.hidden + self.shift
        for layer in self.layers:
            x = layer(x)
        return x


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scripted(path: pathlib.Path, *, trace: bool) -> None:
    net = Net().eval()
    with quiet():
        torch.jit.save(torch.jit.trace(net, torch.randn(4, 3)) if trace else torch.jit.script(net), path)


def load(path: pathlib.Path) -> dict[str, Any]:
    with open_path(path) as container:
        found: dict[str, Any] = read_tree(container.document().tree, str(path))
    return found


@pytest.mark.parametrize("trace", [True, False], ids=["traced", "scripted"])
def test_the_state_dict_in_its_order(trace: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=trace)
    with quiet():
        state = torch.jit.load(path).state_dict()
    found = load(path)
    assert list(found)[: len(state)] == list(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert not found[name].requires_grad
    rest = {name: tensor.tolist() for name, tensor in found.items() if name not in state}
    assert rest == ({"CONSTANTS.c0": [0, 1]} if trace else {"shift": [0, 1]})
    assert found["fc.weight"].data_ptr() == found["again.weight"].data_ptr()
    plain = Net()
    plain.load_state_dict({name: found[name] for name in plain.state_dict()})


def test_nothing_of_it_is_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=False)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch read it")

    for name in ("import_ir_module", "import_ir_module_from_buffer", "PyTorchFileReader"):
        monkeypatch.setattr(torch._C, name, refuse)
    assert "fc.weight" in load(path)


def test_every_record_is_verified(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=False)
    with open_path(path) as container:
        assert container.format == "torchscript"
        assert verify_segments(container.segments()) == 0
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((2,), 3.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with open_path(path) as container, pytest.raises(CorruptFile, match="data/"):
        verify_segments(container.segments())


def rezipped(path: pathlib.Path, change: Callable[[str, bytes], bytes | None]) -> Container:
    """The archive with some records changed or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return open_container(MemorySource(buffer.getvalue(), name="evil.pt"), "evil.pt")


def test_without_its_code_every_tensor_counts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=False)
    container = rezipped(path, lambda name, data: None if name.startswith("code/") else data)
    found = list(container.document().tree)
    assert set(found) == set(load(path))


def test_before_torch_1_6_buffers_are_the_other_tensors(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=False)

    def older(name: str, data: bytes) -> bytes:
        lines = data.split(b"\n")
        return b"\n".join([line for line in lines if b"__buffers__" not in line]) if name.endswith(".py") else data

    found = list(rezipped(path, older).document().tree)
    assert found[:3] == ["scale", "hidden", "shift"]
    assert "norm.running_mean" in found


LIES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "no module": (lambda name, data: b"\x80\x02N." if name == "data.pkl" else data, "data.pkl holds no module"),
    "a missing storage": (
        lambda name, data: None if name == "data/0" else data,
        "data.pkl says that data/0 has 8 bytes, the archive has no such record",
    ),
    "a short storage": (
        lambda name, data: data[:4] if name == "data/0" else data,
        "data.pkl says that data/0 has 8 bytes, the record has 4",
    ),
    "no pickle": (lambda name, data: b"" if name == "data.pkl" else data, "ends in the middle"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt"
    scripted(path, trace=False)
    change, text = LIES[lie]
    with pytest.raises(HoldfastError) as caught:
        rezipped(path, change).document()
    assert text in str(caught.value)
    assert "evil.pt" in str(caught.value)


# -- torch.export


def program(path: pathlib.Path) -> Any:
    with quiet():
        made = torch.export.export(Net().eval(), (torch.randn(4, 3),))
        torch.export.save(made, path)
    return made


@pytest.mark.filterwarnings("ignore")
def test_weights_and_constants_of_a_program(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt2"
    made = program(path)
    found = load(path)
    assert set(found) == set(made.state_dict) | set(made.constants)
    for name, tensor in {**made.state_dict, **made.constants}.items():
        assert torch.equal(found[name], tensor)
    assert found["fc.weight"].data_ptr() == found["again.weight"].data_ptr()
    with open_path(path) as container:
        assert container.format == "torch-export"
        assert verify_segments(container.segments()) == 0


@pytest.mark.filterwarnings("ignore")
def test_the_dtypes_of_the_schema() -> None:
    from torch._export.serde import schema, serialize

    for number, row in BY_EXPORT.items():
        theirs = serialize._SERIALIZE_TO_TORCH_DTYPE.get(number)
        assert theirs is None or theirs == getattr(torch, row.name)
    assert {int(scalar) for scalar in schema.ScalarType} - {0} <= set(BY_EXPORT)


@pytest.mark.filterwarnings("ignore")
def test_its_sample_inputs_are_left_alone(tmp_path: pathlib.Path) -> None:
    """They are a pickle that torch runs when it loads a program."""
    path = tmp_path / "net.pt2"
    program(path)
    planted = rezipped(path, lambda name, data: b"\x80\x02ces.\nsystem\n." if "sample_inputs" in name else data)
    before = set(sys.modules)
    assert "fc.weight" in planted.document().tree
    assert not {name for name in set(sys.modules) - before if name.startswith("ces")}


def old_archive(**parts: Any) -> bytes:
    """As torch 2.1 to 2.7 made it: a plain zip without a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        for name, value in parts.items():
            inner = io.BytesIO()
            torch.save(value, inner)
            archive.writestr(f"serialized_{name}.pt", inner.getvalue())
        archive.writestr("version", "5.1")
    return buffer.getvalue()


def test_archives_of_before_torch_2_8() -> None:
    state = Net().state_dict()
    data = old_archive(state_dict=state, constants={"shift": torch.arange(2.0)}, example_inputs=((torch.ones(1),), {}))
    container = open_container(MemorySource(data), "old.pt2")
    found = read_tree(container.document().tree, "old.pt2")
    assert list(found) == [*state, "shift"]
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert verify_segments(container.segments()) == 0


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[str, bytes], bytes | None]:
    def do(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        config = json.loads(data)
        change(config["config"]["fc.weight"])
        return json.dumps(config).encode()

    return do


EXPORT_LIES: dict[str, tuple[Callable[[str, bytes], bytes | None], type[HoldfastError], str]] = {
    "another format": (
        lambda name, data: b"pt9" if name == "archive_format" else data,
        UnknownFormat,
        "is an archive of format b'pt9'; only pt2 is known",
    ),
    "no JSON": (
        lambda name, data: b"{" if name.endswith("weights_config.json") else data,
        CorruptFile,
        "model_weights_config.json does not list tensors",
    ),
    "a missing file": (
        changed(lambda entry: entry.update(path_name="../../etc/passwd")),
        CorruptFile,
        "`fc.weight` should be in data/weights/../../etc/passwd, which is missing",
    ),
    "an unknown dtype": (
        changed(lambda entry: entry["tensor_meta"].update(dtype=99)),
        CorruptFile,
        "`fc.weight` is described as a tensor of no known dtype and layout",
    ),
    "a symbol as a size": (
        changed(lambda entry: entry["tensor_meta"].update(sizes=[{"as_expr": "s0"}])),
        CorruptFile,
        "model_weights_config.json does not list tensors",
    ),
    "past its file": (
        changed(lambda entry: entry["tensor_meta"].update(storage_offset={"as_int": 1})),
        CorruptFile,
        "needs 24 bytes, the record has 24",
    ),
}


@pytest.mark.parametrize("lie", EXPORT_LIES)
@pytest.mark.filterwarnings("ignore")
def test_lies_of_programs(lie: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.pt2"
    program(path)
    change, error, text = EXPORT_LIES[lie]
    with pytest.raises(error) as caught:
        rezipped(path, change).document()
    assert text in str(caught.value)
