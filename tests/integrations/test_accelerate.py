"""Accelerate alone, and with one line of holdfast: what goes wrong, and that it does not."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, UntrustedType
from holdfast.integrations.accelerate import run as held
from tests.integrations.accelerate_training import BATCHES, EPOCHS, SIZE, Counter, Small
from tests.integrations.forking import ends_with
from tests.integrations.planted import Planted, flip_in

SHAPES: list[dict[str, Any]] = [{}, {"seedable": True}, {"accumulate": 2}]


def differing(one: Small, other: Small) -> list[str]:
    """What is not the same, bit for bit."""
    return [name for name, value in one.state.items() if not torch.equal(value, other.state[name])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_run_changes_nothing_of_a_training(tmp_path: Path, shape: dict[str, Any]) -> None:
    assert differing(Small(**shape).plain(), Small(**shape).train(tmp_path / "run", save="2step 1ep signal")) == []


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("stop", "save"), [(3, "1step"), (8, "1ep"), (13, "1step"), (16, "2step")])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, shape: dict[str, Any], stop: int, save: str) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: Small(**shape).stop(stop).train(root, save=save))
    again = Small(**shape).train(root, save=save)
    whole = Small(**shape).plain()
    assert code == -signal.SIGKILL
    assert differing(whole, again) == []
    assert again.seen == whole.seen[-len(again.seen) :]
    assert len(again.seen) < SIZE * EPOCHS


def test_accelerate_alone_begins_the_epoch_anew(tmp_path: Path) -> None:
    first = Small()
    for batch, _ in zip(first.loader, range(2), strict=False):
        first.step(batch)
    first.accelerator.save_state(str(tmp_path / "state"))
    again = Small()
    again.accelerator.load_state(str(tmp_path / "state"))
    again.plain()
    assert len(again.seen) == SIZE * EPOCHS
    assert "0.weight" in differing(Small().plain(), again)


def test_an_order_that_follows_from_a_seed_goes_on_in_a_process_with_another_seed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    ends_with(lambda: Small(seedable=True).stop(9).train(root, save="1step"))
    again = Small(seedable=True, seed=8).train(root, save="1step")
    whole = Small(seedable=True).plain()
    assert again.seen == whole.seen[-len(again.seen) :]
    assert differing(whole, again) == []


def test_sigterm_commits_and_says_so_with_its_exit_code(tmp_path: Path) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: Small().stop(4, signal.SIGTERM).train(root, save="1ep signal"))
    assert code == 128 + signal.SIGTERM
    assert holdfast.load(root)["registered"] == {"count": 4}
    assert differing(Small().plain(), Small().train(root)) == []


def test_the_best_one_is_kept_with_its_metrics(tmp_path: Path) -> None:
    small = Small().train(tmp_path / "run", best="val_loss:min", keep="last:1")
    assert small.run.position.step == EPOCHS * BATCHES
    assert small.run.best.metrics["val_loss"] <= small.run.last.metrics["val_loss"]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
def test_what_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="has prepared nothing yet; call this behind prepare"):
        held(Accelerator(cpu=True), tmp_path / "run")
    with pytest.raises(ArgumentError, match="with use_stateful_dataloader=True the order of the data is drawn when"):
        held(Small(stateful=True).accelerator, tmp_path / "run")


# -- what save_state and load_state do ---------------------------------------------------------------------------------


def test_a_planted_object_runs_in_load_state_and_never_here(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    small = Small()
    small.accelerator.save_state(str(tmp_path / "state"))
    (custom,) = (tmp_path / "state").glob("custom_checkpoint_*.pkl")
    torch.save(Planted(proof), custom)
    with pytest.raises(UntrustedType, match="mkdir"):
        holdfast.load(custom)
    assert not proof.exists()
    with pytest.raises(TypeError):  # what the planted call gave is no state
        Small().accelerator.load_state(str(tmp_path / "state"))
    assert proof.exists()


def test_a_flipped_bit_is_found_and_load_state_alone_takes_it(tmp_path: Path) -> None:
    small = Small().train(tmp_path / "run")
    weight = small.net.state_dict()["0.weight"]
    (file,) = (path for path in Path(small.run.last.path).iterdir() if weight.numpy().tobytes() in path.read_bytes())
    flip_in(file, weight.numpy().tobytes())
    with pytest.raises(CorruptFile, match="corrupt"):
        holdfast.load(tmp_path / "run@last")
    fallen = Small().train(tmp_path / "run")  # to the commit before, whose epoch is trained again
    assert differing(Small().plain(), fallen) == []
    assert len(fallen.seen) == SIZE

    small.accelerator.save_state(str(tmp_path / "state"))
    flip_in(tmp_path / "state" / "model.safetensors", weight.numpy().tobytes())
    loaded = Small()
    loaded.accelerator.load_state(str(tmp_path / "state"))
    assert not torch.equal(loaded.net.state_dict()["0.weight"], weight)


def test_with_total_limit_accelerate_deletes_before_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = ProjectConfiguration(str(tmp_path), automatic_checkpoint_naming=True, total_limit=1)
    accelerator = Accelerator(cpu=True, project_config=project)
    net = accelerator.prepare(torch.nn.Linear(2, 1))
    accelerator.save_state()
    with monkeypatch.context() as full:
        full.setattr("accelerate.accelerator.save_accelerator_state", _full)
        with pytest.raises(OSError, match="No space left"):
            accelerator.save_state()
    assert not list(tmp_path.rglob("*.safetensors"))

    with held(accelerator, tmp_path / "run", keep="last:1") as run:
        run.save(step=1)
        with monkeypatch.context() as full:
            full.setattr("holdfast.training.folder.write_checkpoint", _full)
            with pytest.raises(OSError, match="No space left"):
                run.save(step=2)
    assert torch.equal(holdfast.load(tmp_path / "run")["model"]["weight"], net.weight)


def _full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


# -- what was there before ---------------------------------------------------------------------------------------------


def test_a_folder_of_save_state_is_restored_and_begun_from(tmp_path: Path) -> None:
    small = Small().plain()
    small.accelerator.save_state(str(tmp_path / "state"))
    again = Small()
    counter = Counter()
    holdfast.restore(tmp_path / "state" / "model.safetensors", model=again.net)
    holdfast.restore(tmp_path / "state" / "optimizer.bin", optimizer=again.optimizer.optimizer)
    again.scheduler.load_state_dict(holdfast.load(tmp_path / "state" / "scheduler.bin"))
    counter.load_state_dict(holdfast.load(tmp_path / "state" / "custom_checkpoint_0.pkl"))
    again.keep_state()
    assert set(differing(small, again)) <= {"rng", "count"}
    assert counter.count == EPOCHS * BATCHES
    begun = Small()
    with held(begun.accelerator, tmp_path / "new", start_from=tmp_path / "state" / "model.safetensors") as run:
        run.resume()
    assert torch.equal(begun.net.state_dict()["0.weight"], small.net.state_dict()["0.weight"])
