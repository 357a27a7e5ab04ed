"""The plug-ins for torch.distributed.checkpoint in one process: what they store, refuse, replace and read."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict

import holdfast
from holdfast.distributed import HoldfastReader, HoldfastWriter
from holdfast.distributed.writer import HoldfastWriter as Direct
from holdfast.errors import ArgumentError
from holdfast.storage.syscalls import Syscalls

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def save(state: Any, path: Path, **options: Any) -> None:
    dcp.save(state, storage_writer=HoldfastWriter(path, **options), no_dist=True)


def load(state: Any, path: Path) -> Any:
    dcp.load(state, storage_reader=HoldfastReader(path), no_dist=True)
    return state


def refusal(work: Callable[[], object]) -> str:
    """What DCP says that a rank raised; its own exception is no Exception."""
    with pytest.raises(CheckpointException) as caught:
        work()
    (error,) = caught.value.failures.values()
    return f"{type(error[0]).__name__}: {error[0]}"


def state(fill: float = 1.0) -> dict[str, Any]:
    return {
        "model": OrderedDict(weight=torch.full((3, 4), fill), bias=torch.arange(3)),
        "optim": {"state": {0: {"step": torch.tensor(fill)}}, "param_groups": [{"lr": fill, "betas": (0.9, 0.99)}]},
        "pair": (torch.ones(2) * fill, "text"),
        "numbers": [1, 2.5, None],
        "half": torch.ones(2, 2, dtype=torch.bfloat16).t(),
        "odd": torch.complex(torch.ones(2), torch.ones(2)).to(torch.complex128),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
    }


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(state(), tmp_path / "c")
    loaded = load({**state(0.0), "numbers": [], "pair": None}, tmp_path / "c")
    assert str(loaded) == str(state())
    assert holdfast.verify(tmp_path / "c").status == "OK"
    tree = holdfast.load(tmp_path / "c")
    assert torch.equal(tree["model"]["weight"], state()["model"]["weight"])
    assert tree["numbers"] == [1, 2.5, None]
    assert tree["pair"][1] == "text"
    assert tree["optim"]["param_groups"] == [{"lr": 1.0, "betas": (0.9, 0.99)}]


def test_no_file_of_it_is_a_pickle_and_each_is_named_in_the_manifest(tmp_path: Path) -> None:
    save(state(), tmp_path / "c")
    with holdfast.open(tmp_path / "c") as ckpt:
        assert ckpt.format == "run-checkpoint"
    assert sorted(os.listdir(tmp_path / "c")) == [
        "entries.json", "manifest.json", "rank-00000.safetensors", "state.json",
    ]  # fmt: skip


def test_async_save(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live = {"w": torch.ones(4)}
            future: Any = dcp.async_save(live, storage_writer=HoldfastWriter(tmp_path / "c"))
            live["w"].zero_()
            future.result()
    finally:
        torch.distributed.destroy_process_group()
    assert holdfast.load(tmp_path / "c")["w"].tolist() == [1.0] * 4


class _Planted:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_group_of_one_process_saves_as_a_process_alone(tmp_path: Path) -> None:
    """Copies on step, and links what has not changed: neither needs anyone's agreement."""
    frozen = torch.nn.Linear(600, 600).requires_grad_(False)  # past the size from which files are linked
    head = torch.nn.Linear(600, 1)
    opt = torch.optim.SGD(head.parameters(), lr=0.1)
    with holdfast.Run(tmp_path / "run", teacher=frozen, model=head, opt=opt, background=True) as run:
        for step in (1, 2, 3):
            head(torch.ones(1, 600)).sum().backward()
            opt.step()
            last = run.save(step=step)
            last.wait()
        assert last.changed < last.bytes / 10
    assert not list((tmp_path / "run").rglob("rank-*"))


def test_what_the_planner_pickles_is_audited_and_never_run(tmp_path: Path) -> None:
    save({"w": torch.ones(2)}, tmp_path / "c")
    said = refusal(lambda: save({"a": {"b": _Planted(tmp_path / "ran")}}, tmp_path / "c"))
    assert said.startswith("UnsupportedValue")
    assert "`a.b`: is a posix.mkdir, which loading would have to call" in said
    assert not (tmp_path / "ran").exists()
    assert holdfast.load(tmp_path / "c")["w"].tolist() == [1.0, 1.0], "the old one stays"
    dcp.save({"a": _Planted(tmp_path / "ran")}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    with pytest.raises(CheckpointException):
        load({"a": None}, tmp_path / "theirs")
    assert not (tmp_path / "ran").exists()
    dcp.load({"a": None}, checkpoint_id=tmp_path / "theirs", no_dist=True)
    assert (tmp_path / "ran").exists(), "torch's own reader runs it: the check can fail"


def test_bytes_that_are_no_pickle_of_torch_are_refused(tmp_path: Path) -> None:
    import io

    class Raw(dcp.DefaultSavePlanner):
        def transform_object(self, write_item: Any, object: Any) -> Any:  # noqa: A002  # torch's name
            return io.BytesIO(b"anything") if not isinstance(object, torch.Tensor) else object

    writer = HoldfastWriter(tmp_path / "c")
    said = refusal(lambda: dcp.save({"a": 1}, storage_writer=writer, planner=Raw(), no_dist=True))
    assert "`a`: the planner gives bytes that are no plain value" in said


def test_sparse_tensors_are_refused_by_name(tmp_path: Path) -> None:
    said = refusal(lambda: save({"s": torch.eye(3).to_sparse()}, tmp_path / "c"))
    assert "`s`: a sparse tensor can't be stored" in said


def test_a_checkpoint_of_the_name_is_exchanged_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen, real = tmp_path / "c", list[float](), Syscalls.exchange
    save({"w": torch.ones(2)}, path)

    def watched(self: Syscalls, one: str, other: str) -> None:
        seen.append(holdfast.load(path)["w"][0].item())
        real(self, one, other)
        seen.append(holdfast.load(path)["w"][0].item())

    monkeypatch.setattr(Syscalls, "exchange", watched)
    save({"w": torch.ones(2) * 2}, path)
    assert seen == [1.0, 2.0]
    assert os.listdir(tmp_path) == ["c"]


def test_where_a_disk_can_not_exchange_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(22, "Invalid argument")

    save({"w": torch.ones(2)}, tmp_path / "c")
    monkeypatch.setattr(Syscalls, "exchange", none)
    assert "StorageError" in refusal(lambda: save({"w": torch.zeros(2)}, tmp_path / "c"))
    assert holdfast.load(tmp_path / "c")["w"].tolist() == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["c"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    said = refusal(lambda: save({"w": torch.ones(2)}, tmp_path / "mine"))
    assert "no checkpoint of holdfast; it is not replaced" in said
    (tmp_path / "empty").mkdir()
    save({"w": torch.ones(2)}, tmp_path / "empty")
    assert holdfast.verify(tmp_path / "empty").status == "OK"


def test_without_collectives_nothing_can_be_committed(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="use_collectives=False no rank knows"):
        Direct(tmp_path / "c").set_up_storage_writer(True, rank=0, use_collectives=False)
    with pytest.raises(ArgumentError, match="`s3://b/c`: HoldfastWriter writes into a folder of a disk that ranks"):
        Direct("s3://b/c").set_up_storage_writer(True, rank=0)
    with pytest.raises(ArgumentError, match="no folder to save into"):
        Direct().set_up_storage_writer(True, rank=0, use_collectives=False)
    with pytest.raises(ArgumentError, match="nothing to load"):
        HoldfastReader().read_metadata()


def test_checkpoint_id_names_the_folder(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "c", storage_writer=HoldfastWriter(), no_dist=True)
    into = {"w": torch.zeros(2)}
    dcp.load(into, checkpoint_id=str(tmp_path / "c"), storage_reader=HoldfastReader(), no_dist=True)
    assert into["w"].tolist() == [1.0, 1.0]
    assert HoldfastWriter.validate_checkpoint_id(tmp_path)
    assert not HoldfastReader.validate_checkpoint_id("s3://bucket/c")


def test_metadata_is_kept(tmp_path: Path) -> None:
    save({"w": torch.ones(1)}, tmp_path / "c", metadata={"note": "first"})
    with holdfast.open(tmp_path / "c") as ckpt:
        assert ckpt.metadata == {"note": "first"}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "theirs", "run"])
def test_any_file_is_read_through_the_planner(tmp_path: Path, name: str) -> None:
    net = torch.nn.Linear(3, 2)
    tree = {"model": net.state_dict()}
    if name == "theirs":
        dcp.save(tree, checkpoint_id=tmp_path / name, no_dist=True)
    elif name == "run":
        with holdfast.Run(tmp_path / name, model=net) as run:
            run.save(step=1)
    else:
        holdfast.save({"model": net}, tmp_path / name)
    into = {"model": torch.nn.Linear(3, 2).state_dict()}
    load(into, tmp_path / name)
    assert torch.equal(into["model"]["weight"], net.weight)
    assert torch.equal(into["model"]["bias"], net.bias)


def test_a_flipped_bit_stops_a_load_before_anything_is_written(tmp_path: Path) -> None:
    save({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "c")
    file = tmp_path / "c" / "rank-00000.safetensors"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    into = {"a": torch.zeros(4), "b": torch.zeros(4)}
    assert "CorruptFile" in refusal(lambda: load(into, tmp_path / "c"))
    assert into["a"].sum() == into["b"].sum() == 0


def test_a_run_in_one_process_imports_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys, torch, holdfast\n"
        f"run = holdfast.Run({str(tmp_path / 'r')!r}, model=torch.nn.Linear(2, 1)); run.save(step=1); run.close()\n"
        "assert 'torch.distributed.checkpoint' not in sys.modules, 'checkpoint'\n"
        "assert 'torch.distributed.tensor' not in sys.modules, 'tensor'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_an_optimizer_that_dcp_saved_is_restored(tmp_path: Path, named: bool, theirs: bool) -> None:
    net, other = (torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)) for _ in range(2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.5)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    model, optim = get_state_dict(net, optimizer) if named else (net.state_dict(), optimizer.state_dict())
    if theirs:
        dcp.save({"model": model, "optimizer": optim}, checkpoint_id=tmp_path / "c", no_dist=True)
    else:
        save({"model": model, "optimizer": optim}, tmp_path / "c")
    moments = torch.optim.AdamW(reversed(list(other.parameters())) if named else other.parameters())
    holdfast.restore(tmp_path / "c", model=other, optimizer=moments)
    pairs = list(zip(net.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(optimizer.state[a]["exp_avg"], moments.state[b]["exp_avg"]) for a, b in pairs)
    assert moments.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("plugin", [HoldfastWriter, HoldfastReader])
def test_the_examples_are_true(plugin: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = doctest.DocTestFinder(recurse=False).find(plugin, plugin.__name__, globs={})
    result = doctest.DocTestRunner().run(found)
    assert result.attempted > 3
    assert not result.failed
