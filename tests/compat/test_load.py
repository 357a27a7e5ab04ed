"""What programs rely on in torch.load, one behaviour a test, each against torch itself."""

from __future__ import annotations

import collections
import gzip
import inspect
import io
import pathlib
import pickle
import types
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.serialization import config

from holdfast import compat

LOADS = {"ours": compat.load, "torch": torch.load}


@pytest.fixture(params=LOADS)
def load(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Ours, and torch's: what holds for one must hold for the other."""
    return LOADS[request.param]


def saved(value: Any, **arguments: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer, **arguments)
    buffer.seek(0)
    return buffer


def both(value: Any) -> list[io.BytesIO]:
    return [saved(value), saved(value, _use_new_zipfile_serialization=False)]


def test_signatures_are_those_of_torch() -> None:
    for name in ("save", "load"):
        ours, theirs = getattr(compat, name), getattr(torch, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        real = inspect.signature(types.FunctionType(ours.__code__, {}, name, ours.__defaults__))
        assert list(real.parameters) == list(inspect.signature(theirs).parameters)
        assert ours.__defaults__ == theirs.__defaults__
        assert ours.__kwdefaults__ == theirs.__kwdefaults__


@pytest.mark.parametrize(
    "where",
    [None, "cpu", torch.device("cpu"), {"cpu": "cpu"}, {}, lambda storage, location: storage, lambda *_: None],
    ids=["none", "name", "device", "dict", "empty dict", "function", "function of None"],
)
def test_map_location(load: Callable[..., Any], where: Any) -> None:
    for buffer in both([torch.arange(3.0)]):
        assert torch.equal(load(buffer, map_location=where)[0], torch.arange(3.0))


def test_map_location_is_shown_each_storage_on_the_cpu(load: Callable[..., Any]) -> None:
    seen = []

    def where(storage: Any, location: str) -> Any:
        seen.append((type(storage), storage.device.type, location, storage.nbytes()))
        return storage

    for buffer in both([torch.arange(3.0), torch.ones(2, dtype=torch.int8)]):
        load(buffer, where)
    assert (
        seen
        == [
            (torch.UntypedStorage, "cpu", "cpu", 12),
            (torch.UntypedStorage, "cpu", "cpu", 2),
        ]
        * 2
    )


def test_map_location_meta_reads_nothing(load: Callable[..., Any]) -> None:
    for buffer in both(torch.arange(3.0)):
        loaded = load(buffer, map_location="meta")
        assert loaded.is_meta
        assert loaded.shape == (3,)


def test_absent_device(load: Callable[..., Any]) -> None:
    buffer = saved(torch.ones(2))
    with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA"):
        load(buffer, map_location="cuda:7")
    assert torch.serialization._serialization_tls.map_location is None or load is torch.load
    torch.serialization._serialization_tls.map_location = None


def test_registered_locations(load: Callable[..., Any]) -> None:
    def tag(storage: Any) -> str | None:
        return "shelf:3" if storage.nbytes() == 20 else None

    def place(storage: Any, location: str) -> Any:
        return storage if location.startswith("shelf:") else None

    torch.serialization.register_package(5, tag, place)
    try:
        buffers = both([torch.arange(5.0), torch.ones(2)])
        ours = io.BytesIO()
        compat.save(torch.arange(5.0), ours)
        assert b"shelf:3" in ours.getvalue()
        for buffer in buffers:
            assert b"shelf:3" in buffer.getvalue()
            assert load(buffer)[0].tolist() == [0, 1, 2, 3, 4]
    finally:
        registry = torch.serialization._package_registry
        registry[:] = [entry for entry in registry if entry[1] is not tag]
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        load(saved_on_shelf(buffers[0]))


def saved_on_shelf(buffer: io.BytesIO) -> io.BytesIO:
    buffer.seek(0)
    return buffer


# -- files


class Odd:
    """A file object with nothing but what is wanted, which reads and writes a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)
        self.readline, self.tell = self._inner.readline, self._inner.tell

    def seek(self, offset: int, whence: int = 0) -> None:
        self._inner.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(size)


class Into(Odd):
    """With readinto, which may fill less than it is given."""

    used = 0

    def readinto(self, buffer: Any) -> int:
        self.used += 1
        view = memoryview(buffer).cast("B")
        data = self._inner.read(min(len(view), 7))
        view[: len(data)] = data
        return len(data)


def test_file_objects_without_a_descriptor() -> None:
    value = {"w": torch.arange(100.0)}
    for buffer in both(value):
        for cls in (Odd, Into):
            file = cls(buffer.getvalue())
            assert torch.equal(compat.load(file)["w"], value["w"])
        assert file.used


def test_paths(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m\u00f6del.pt"
    for save in (torch.save, compat.save):
        save([1], path)
        assert load(path) == load(str(path)) == [1]
        with path.open("rb") as file:
            assert load(file) == [1]


def test_gzip(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt.gz"
    for buffer in both({"w": torch.arange(3.0)}):
        path.write_bytes(gzip.compress(buffer.getvalue()))
        with gzip.open(path) as file:
            assert load(file)["w"].tolist() == [0, 1, 2]


def test_several_objects_in_one_stream(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "several.pt"
    ends = []
    with path.open("wb") as file:
        for value in ([torch.ones(3)], {"a": 1}, torch.zeros(2)):
            torch.save(value, file, _use_new_zipfile_serialization=False)
            ends.append(file.tell())
    with path.open("rb") as file:
        found, positions = [], []
        for _ in range(3):
            found.append(load(file))
            positions.append(file.tell())
        with pytest.raises(EOFError):
            load(file)
    assert found[0][0].tolist() == [1, 1, 1]
    assert found[1] == {"a": 1}
    assert found[2].tolist() == [0, 0]
    assert positions == ends


def test_a_zip_is_read_from_the_position_on(load: Callable[..., Any]) -> None:
    data = saved({"w": torch.ones(3)}).getvalue()
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    assert load(file)["w"].tolist() == [1, 1, 1]
    theirs = io.BytesIO(b"before" + data)
    theirs.seek(6)
    torch.load(theirs)
    assert file.tell() == theirs.tell()


def test_mmap_shares_pages(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(4)}, path)
    with torch.serialization.set_default_mmap_options(torch.serialization.MAP_SHARED):
        loaded = load(path, mmap=True)["w"]
    loaded.fill_(7)
    assert torch.load(path)["w"].tolist() == [7.0] * 4
    private = load(path, mmap=True)["w"]
    private.fill_(1)
    assert torch.load(path)["w"].tolist() == [7.0] * 4
    with config.patch({"load.mmap": True}):
        assert load(path)["w"].tolist() == [7.0] * 4


def test_mmap_wants_a_path_and_a_zip(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="f must be a file path in order to use the mmap argument"):
        load(saved([torch.ones(2)]), mmap=True)
    path = tmp_path / "old.pt"
    torch.save([1], path, _use_new_zipfile_serialization=False)
    with pytest.raises(RuntimeError, match="mmap can only be used with files saved with"):
        load(path, mmap=True)


def test_mmap_of_compressed_storages_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deflated.pt"
    with zipfile.ZipFile(saved([torch.zeros(400)])) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert compat.load(path)[0].tolist() == [0.0] * 400
    with pytest.raises(RuntimeError, match="is compressed and can't be mapped; load it with mmap=False"):
        compat.load(path, mmap=True)


def test_safetensors(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    import safetensors.torch

    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"a.b": torch.ones(2), "c": torch.zeros(1)}, path)
    for where in (None, "cpu", torch.device("cpu")):
        loaded = load(path, map_location=where)
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"a.b": [1, 1], "c": [0]}
    for where, kind in (({"cpu": "cpu"}, "dict"), (lambda *_: None, "callable")):
        with pytest.raises(RuntimeError, match=f"safetensors file with {kind} map_location is not supported"):
            load(path, map_location=where)


# -- weights_only


class Point:
    """A class of the program's own."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


class Slotted:
    """One with slots."""

    __slots__ = ("x",)


def test_a_class_must_be_allowed(load: Callable[..., Any]) -> None:
    for buffer in both({"p": Point(3)}):
        with pytest.raises(
            pickle.UnpicklingError, match=r"GLOBAL \S*Point was not an allowed global by default"
        ) as why:
            load(buffer)
        assert "Weights only load failed" in str(why.value)
        assert why.value.__suppress_context__
        buffer.seek(0)
        with torch.serialization.safe_globals([Point]):
            assert load(buffer) == {"p": Point(3)}
        buffer.seek(0)
        assert load(buffer, weights_only=False) == {"p": Point(3)}


def test_slots(load: Callable[..., Any]) -> None:
    value = Slotted()
    value.x = [torch.ones(1)]
    with torch.serialization.safe_globals([Slotted]):
        assert load(saved(value)).x[0].tolist() == [1.0]


def test_a_name_can_be_given_to_what_is_allowed(load: Callable[..., Any]) -> None:
    name = f"{Point.__module__}.{Point.__qualname__}"
    with torch.serialization.safe_globals([(Slotted, name)]), pytest.raises(AttributeError):
        load(saved(Point(3)))


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemError('it ran')",))


class Blocked:
    """What no program can allow."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, ("true",))


def test_nothing_runs_unless_asked_for(load: Callable[..., Any]) -> None:
    for buffer in both(Evil()):
        with pytest.raises(pickle.UnpicklingError, match="GLOBAL exec was not an allowed global"):
            load(buffer)
        buffer.seek(0)
        with pytest.raises(SystemError, match="it ran"):
            load(buffer, weights_only=False)


def test_some_modules_are_never_allowed(load: Callable[..., Any]) -> None:
    import os

    with (
        torch.serialization.safe_globals([os.system]),
        pytest.raises(pickle.UnpicklingError, match="whose module posix is blocked"),
    ):
        load(saved(Blocked()))


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols(protocol: int) -> None:
    data = saved({"a": torch.ones(2), "b": [True]}, pickle_protocol=protocol).getvalue()
    found = []
    for load in LOADS.values():
        for weights_only in (True, False):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    result: Any = load(io.BytesIO(data), weights_only=weights_only)["a"].tolist()
                except (pickle.UnpicklingError, AssertionError) as reason:
                    result = type(reason), str(reason)
            found.append((result, [str(warning.message) for warning in told]))
    assert found[:2] == found[2:]


def test_the_environment_decides(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Point(3)).getvalue()
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pickle.UnpicklingError):
        load(io.BytesIO(data), weights_only=False)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "YES")
    with pytest.raises(RuntimeError, match="should be set, but both were set"):
        load(io.BytesIO(data))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD detected") as told:
        assert load(io.BytesIO(data)) == Point(3)
    assert told[0].filename == __file__
    with pytest.raises(pickle.UnpicklingError):
        load(io.BytesIO(data), weights_only=True)


def test_pickle_module(load: Callable[..., Any]) -> None:
    seen = []

    class Unpickler(pickle.Unpickler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            seen.append(kwargs)
            super().__init__(*args, **kwargs)

    module = types.SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="mine")
    assert load(saved(Point(3)), pickle_module=module, errors="strict") == Point(3)
    assert seen == [{"encoding": "utf-8", "errors": "strict"}]
    with pytest.raises(RuntimeError, match="Can not safely load weights when explicit pickle_module is specified"):
        load(saved(1), pickle_module=pickle, weights_only=True)
    with pytest.warns(UserWarning, match="pickle_load_args only works if"):
        load(saved(1), weights_only=True, encoding="latin1")


def test_strings_of_python_2(load: Callable[..., Any]) -> None:
    text = b"\x80\x02U\x04caf\xe9."
    with zipfile.ZipFile(saved(0)) as old:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, text if entry.filename.endswith("data.pkl") else old.read(entry))
    for encoding, meant in (("latin1", "caf\xe9"), ("bytes", b"caf\xe9")):
        made.seek(0)
        assert load(made, weights_only=False, encoding=encoding) == meant
        made.seek(0)
        with pytest.warns(UserWarning, match="pickle_load_args"):
            assert load(made, weights_only=True, encoding=encoding) == meant
    made.seek(0)
    with pytest.raises(UnicodeDecodeError):
        load(made, weights_only=False)


# -- without data


def test_skip_data(load: Callable[..., Any]) -> None:
    for buffer in both({"w": torch.ones(5)}):
        with torch.serialization.skip_data():
            loaded = load(buffer)
        assert loaded["w"].shape == (5,)
        assert loaded["w"].untyped_storage().nbytes() == 20


def test_fake_mode_tells_where_the_bytes_are(load: Callable[..., Any]) -> None:
    value = {"a": torch.arange(4.0), "b": torch.ones(3)}
    data = saved(value).getvalue()
    with FakeTensorMode():
        loaded = load(io.BytesIO(data))
    for name, tensor in loaded.items():
        assert tensor.device.type == "cpu"
        offset = tensor.untyped_storage()._checkpoint_offset
        length = value[name].nbytes
        assert data[offset : offset + length] == value[name].numpy().tobytes()


def test_byte_order(load: Callable[..., Any]) -> None:
    big = io.BytesIO()
    with zipfile.ZipFile(saved(torch.arange(4.0))) as old, zipfile.ZipFile(big, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data/0"):
                data = torch.arange(4.0).numpy().astype(">f4").tobytes()
            if not entry.filename.endswith("byteorder"):
                new.writestr(entry.filename, data)
    before = torch.serialization.get_default_load_endianness()
    try:
        torch.serialization.set_default_load_endianness(torch.serialization.LoadEndianness.BIG)
        big.seek(0)
        assert load(big).tolist() == [0, 1, 2, 3]
        torch.serialization.set_default_load_endianness(torch.serialization.LoadEndianness.NATIVE)
        big.seek(0)
        assert load(big)[1] != 1
    finally:
        config.load.endianness = before


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_handed_to_torch_jit(load: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "scripted.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), path)
        with pytest.raises(RuntimeError, match="weights_only=True`` with TorchScript archives"):
            load(path)
        assert set(load(path, weights_only=False).state_dict()) == {"weight", "bias"}
    with pytest.warns(UserWarning, match="dispatching to 'torch.jit.load'") as told:
        load(path, weights_only=False)
    assert [warning.filename for warning in told if "dispatching" in str(warning.message)] == [__file__]


def test_a_nested_counter_and_an_ordered_dict(load: Callable[..., Any]) -> None:
    value = collections.OrderedDict(c=collections.Counter("aab"), n=[[[]]])
    for buffer in both(value):
        assert load(buffer) == value
