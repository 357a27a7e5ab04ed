"""The Trainer of transformers alone, and with one line of holdfast: what goes wrong, and that it does not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, GPT2LMHeadModel, TrainerState
from transformers.trainer_utils import get_last_checkpoint

import holdfast
from holdfast.errors import ArgumentError
from holdfast.integrations.transformers import _RunCallback
from holdfast.integrations.transformers import train as held
from tests.integrations.forking import ends_with
from tests.integrations.planted import flip_in
from tests.integrations.transformers_training import EPOCHS, Watch, finished, state_of, trainer_in

STEPS = 6
"""Of an epoch."""
SHAPES: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 4},
    {"eval_strategy": "steps", "eval_steps": 2},
]


def differing(one: Any, other: Any) -> list[str]:
    """What is not the same, bit for bit."""
    first, second = one.held_state, other.held_state
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_run_changes_nothing_of_a_training(tmp_path: Path, shape: dict[str, Any]) -> None:
    alone = finished(trainer_in(tmp_path, **shape))
    ours = finished(trainer_in(tmp_path, **shape), tmp_path / "run", save="2step 1ep signal", best="eval_loss:min")
    assert differing(alone, ours) == []


@pytest.mark.parametrize(
    ("shape", "stop", "save"),
    [(SHAPES[0], 3, "1step"), (SHAPES[0], 8, "1ep"), (SHAPES[1], 4, "1step"), (SHAPES[2], 14, "1step")],
    ids=str,
)
def test_a_killed_training_goes_on_bit_for_bit(
    tmp_path: Path, shape: dict[str, Any], stop: int, save: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: held(trainer_in(tmp_path, Watch(stop), **shape), root, save=save))
    watch = Watch()
    again = finished(trainer_in(tmp_path, watch, **shape), root, save=save)
    assert code == -signal.SIGKILL
    assert differing(finished(trainer_in(tmp_path, **shape)), again) == []
    assert watch.steps == again.state.global_step - {"1step": stop - 1, "1ep": STEPS}[save]
    assert not [line for line in caplog.messages if "as in the checkpoint" in line]  # the scheduler sets the rate


def test_sigterm_commits_and_says_so_with_its_exit_code(tmp_path: Path) -> None:
    root = tmp_path / "run"
    trainer = trainer_in(tmp_path, Watch(4, signal.SIGTERM))
    assert ends_with(lambda: held(trainer, root, save="1ep signal")) == 128 + signal.SIGTERM
    assert holdfast.load(root)["trainer"]["global_step"] == 4
    assert differing(finished(trainer_in(tmp_path)), finished(trainer_in(tmp_path), root)) == []


def test_the_trainer_alone_dies_of_sigterm_without_a_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, Watch(4, signal.SIGTERM), save_strategy="epoch")
    assert ends_with(trainer.train) == -signal.SIGTERM
    assert get_last_checkpoint(str(tmp_path)) is None


def test_the_trainer_alone_goes_on_from_half_a_checkpoint_with_a_new_optimizer(tmp_path: Path) -> None:
    """A kill while it saves leaves a folder that is the newest one by its name."""
    trainer_in(tmp_path, save_strategy="steps", save_steps=4, max_steps=4).train()
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    again = trainer_in(tmp_path, max_steps=5)
    again.train(resume_from_checkpoint=True)
    counts = {float(state["step"]) for state in again.optimizer.state.values()}
    assert again.state.global_step == 5
    assert counts == {1.0}


def test_a_commit_that_was_cut_off_is_never_gone_on_from(tmp_path: Path) -> None:
    root = tmp_path / "run"
    finished(trainer_in(tmp_path), root, save="4step")
    (newest,) = root.glob("step-*18")
    newest.rename(root / ".step-00000018.partial")
    watch = Watch()
    again = finished(trainer_in(tmp_path, watch), root, save="4step")
    assert watch.steps == 2
    assert differing(finished(trainer_in(tmp_path)), again) == []


def test_a_damaged_commit_is_passed_over_and_the_trainer_alone_trains_on_with_one(tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = finished(trainer_in(tmp_path), root, save="1ep")
    (newest,) = root.glob("step-*18")
    weight = first.model.transformer.ln_f.weight.detach().clone()
    flip_in(newest / "model.safetensors", weight.numpy().tobytes())
    watch = Watch()
    again = finished(trainer_in(tmp_path, watch), root)
    assert watch.steps == STEPS
    assert differing(first, again) == []

    alone = trainer_in(tmp_path, save_strategy="epoch")
    alone.train()
    flip_in(tmp_path / "checkpoint-18" / "model.safetensors", weight.numpy().tobytes())
    loaded = trainer_in(tmp_path)
    loaded.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
    assert not torch.equal(loaded.model.transformer.ln_f.weight, weight)


def test_every_evaluation_is_committed_and_the_best_stays(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, eval_strategy="steps", eval_steps=4)
    held(trainer, tmp_path / "run", best="eval_loss:min", keep="last:1", save="end")
    lines = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = min(lines, key=lambda step: (lines[step], -step))
    model = GPT2LMHeadModel(trainer.model.config)
    holdfast.restore(tmp_path / "run@best", model=model)
    manifest = json.loads((tmp_path / "run" / f"step-{best:08}" / "manifest.json").read_text())
    assert manifest["metrics"]["eval_loss"] == lines[best]
    assert len(list((tmp_path / "run").glob("step-*"))) <= 2


def test_metrics_are_committed_with_the_weights_that_they_are_of_or_not_at_all(tmp_path: Path) -> None:
    held(trainer_in(tmp_path, eval_strategy="steps", eval_steps=4), tmp_path / "run", save="1ep")
    manifests = [json.loads(file.read_text()) for file in sorted((tmp_path / "run").glob("step-*/manifest.json"))]
    assert [(one["step"], bool(one.get("metrics"))) for one in manifests] == [(6, False), (12, True), (18, True)]


def test_the_callbacks_of_the_trainer_go_on(tmp_path: Path) -> None:
    options = {"metric_for_best_model": "eval_loss", "restore_callback_states_from_checkpoint": True}

    def counted(epochs: int, root: Path) -> int:
        stopping = EarlyStoppingCallback(early_stopping_patience=9, early_stopping_threshold=100)
        trainer = trainer_in(tmp_path, stopping, num_train_epochs=epochs, **options)
        held(trainer, root)
        (kept,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
        return int(kept.early_stopping_patience_counter)

    whole = counted(3, tmp_path / "whole")
    counted(2, tmp_path / "run")
    assert counted(3, tmp_path / "run") == whole > 1


def test_a_run_begins_anew_when_asked_to(tmp_path: Path) -> None:
    first = finished(trainer_in(tmp_path), tmp_path / "run")
    watch = Watch()
    again = finished(trainer_in(tmp_path, watch), tmp_path / "run", fresh=True)
    assert watch.steps == STEPS * EPOCHS
    assert differing(first, again) == []
    assert len(list((tmp_path / "run" / "superseded").iterdir())) == EPOCHS


def test_an_error_of_the_program_lets_go_of_the_run(tmp_path: Path) -> None:
    class Fails(Watch):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        held(trainer_in(tmp_path, Fails()), tmp_path / "run")
    finished(trainer_in(tmp_path), tmp_path / "run")


def test_a_run_that_another_process_moved_on_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(trainer_in(tmp_path), tmp_path / "run")
    monkeypatch.setattr("holdfast.integrations.transformers._as_checkpoint", lambda root, folder: None)
    with pytest.raises(ArgumentError, match=r"the run stands at step 18, the trainer at 0; .*: start again"):
        held(trainer_in(tmp_path), tmp_path / "run")


def test_a_callback_that_is_told_of_an_epoch_without_a_training_says_so(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    with pytest.raises(ArgumentError, match="run`: no training is under way"):
        _RunCallback(trainer, str(tmp_path / "run"), {}).on_epoch_begin(trainer.args, trainer.state, trainer.control)


def test_a_run_in_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="reads what a run holds as files: name a folder"):
        held(trainer_in(tmp_path), "memory://bucket/run")


def test_safetensors_reads_the_weights_of_a_run(tmp_path: Path) -> None:
    trainer = finished(trainer_in(tmp_path), tmp_path / "run")
    (newest,) = (tmp_path / "run").glob("step-*18")
    weights = load_file(newest / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in weights.items())


# -- what was there before ---------------------------------------------------------------------------------------------


def test_a_checkpoint_folder_of_the_trainer_is_restored_and_begun_from(tmp_path: Path) -> None:
    old = trainer_in(tmp_path, save_strategy="epoch")
    old.train()
    folder = tmp_path / "checkpoint-18"
    model = GPT2LMHeadModel(old.model.config)
    holdfast.restore(folder / "model.safetensors", model=model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in old.model.state_dict().items())
    moments = holdfast.load(folder / "optimizer.pt")
    assert moments["state"].keys() == old.optimizer.state_dict()["state"].keys()
    assert TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step == 18
    begun = trainer_in(tmp_path, max_steps=1, learning_rate=0.0)
    held(begun, tmp_path / "new", start_from=folder / "model.safetensors")
    assert torch.equal(state_of(begun)["lm_head.weight"], old.model.lm_head.weight)
