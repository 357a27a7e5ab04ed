"""Ignite alone, and with one line of holdfast: what goes wrong, and that it does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, UntrustedType
from holdfast.integrations.ignite import HoldfastSaver, attach
from tests.integrations.forking import ends_with
from tests.integrations.ignite_training import BATCHES, EPOCHS, SIZE, Small
from tests.integrations.planted import Planted, flip_in


def differing(one: Small, other: Small) -> list[str]:
    """What is not the same, bit for bit."""
    return [name for name, value in one.state.items() if not torch.equal(value, other.state[name])]


@pytest.fixture
def whole() -> Small:
    """The training that nothing stopped."""
    return Small().train()


# -- the run -----------------------------------------------------------------------------------------------------------


def test_a_run_changes_nothing_of_a_training(tmp_path: Path, whole: Small) -> None:
    assert differing(whole, Small().train(tmp_path / "run", save="2step 1ep signal")) == []


@pytest.mark.parametrize("stop", [3, 6, 8, 13])
@pytest.mark.parametrize("save", ["1step", "1ep"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, whole: Small, stop: int, save: str) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: Small().stop(stop).train(root, save=save))
    again = Small().train(root, save=save)
    assert code == -signal.SIGKILL
    assert differing(whole, again) == []
    assert again.seen == whole.seen[-len(again.seen) :]
    assert len(again.seen) < SIZE * EPOCHS or (save == "1ep" and stop <= BATCHES)


def test_ignite_alone_goes_on_in_an_epoch_with_other_data(tmp_path: Path, whole: Small) -> None:
    first = Small()
    every = Checkpoint({**first.objects, "engine": first.trainer}, DiskSaver(tmp_path), n_saved=None)
    first.trainer.add_event_handler(Events.ITERATION_COMPLETED, every)
    assert ends_with(lambda: first.stop(3).train()) == -signal.SIGKILL
    again = Small()
    file = torch.load(tmp_path / "checkpoint_2.pt")
    Checkpoint.load_objects({**again.objects, "engine": again.trainer}, file)
    again.train()
    assert again.seen[: SIZE - 8] != whole.seen[8:SIZE]
    assert {"0.weight", "rng"} <= set(differing(whole, again))


def test_sigterm_commits_and_says_so_with_its_exit_code(tmp_path: Path, whole: Small) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: Small().stop(4, signal.SIGTERM).train(root, save="1ep signal"))
    assert code == 128 + signal.SIGTERM
    assert holdfast.load(root)["model"]["1.num_batches_tracked"] == 4
    assert differing(whole, Small().train(root)) == []


def test_an_error_commits_what_was_done_before_and_lets_go_of_the_run(tmp_path: Path, whole: Small) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="bad data") as caught:
        Small().fails_at(4).train(tmp_path / "run", save="1ep exception signal")
    assert any("step 3 of the run is saved" in note for note in caught.value.__notes__)
    assert signal.getsignal(signal.SIGTERM) == before
    again = Small().train(tmp_path / "run")
    assert differing(whole, again) == []
    assert len(again.seen) == SIZE * EPOCHS - 3 * 4


def test_an_error_that_the_program_hears_of_itself_is_its_own_affair(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    small = Small().fails_at(4)
    small.trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    small.train(tmp_path / "run")
    assert [str(error) for error in errors] == ["bad data"]
    assert small.run.last.step == small.run.position.step == small.trainer.state.iteration


def test_the_metrics_of_the_evaluator_are_committed_with_their_epoch(tmp_path: Path) -> None:
    small = Small().train(tmp_path / "run", best="loss:min", keep="last:1")
    last, best = small.run.last, small.run.best
    assert last.metrics == {"loss": pytest.approx(small.evaluator.state.metrics["loss"])}
    assert last.step == EPOCHS * BATCHES
    assert best.metrics["loss"] <= last.metrics["loss"]
    model = best.build()
    assert not model.training
    assert model is not small.net


def test_an_epoch_without_an_evaluation_has_no_metrics_of_another(tmp_path: Path) -> None:
    small = Small()
    run = attach(small.trainer, tmp_path / "run", evaluator=small.evaluator, **small.objects)
    small.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: small.evaluator.run(small.loader))
    small.trainer.run(small.loader, max_epochs=2)
    assert holdfast.verify(tmp_path / "run").status == "OK"
    assert run.last.metrics == {}
    assert run.last.step == 2 * BATCHES


def test_more_epochs_go_on_and_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    Small().train(tmp_path / "run", epochs=2)
    more = Small().train(tmp_path / "run")
    assert differing(Small().train(), more) == []
    assert len(more.seen) == SIZE
    assert Small().train(tmp_path / "run").seen == []


def test_what_a_program_keeps_in_the_engines_state_goes_on(tmp_path: Path) -> None:
    def train(epochs: int) -> Engine:
        net = torch.nn.Linear(2, 1)
        engine = Engine(lambda engine, batch: setattr(engine.state, "total", engine.state.total + 1))
        engine.state_dict_user_keys.append("total")
        engine.state.total = 0
        attach(engine, tmp_path / "run", model=net)
        engine.run([1, 2, 3], max_epochs=epochs)
        return engine

    train(1)
    assert train(3).state.total == 9


def test_an_epoch_that_is_ended_early_is_followed_by_a_whole_one(tmp_path: Path) -> None:
    def train(stop: int) -> Small:
        small = Small()
        small.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), small.trainer.terminate_epoch)
        return (small.stop(stop) if stop else small).train(tmp_path / str(stop), save="1step")

    whole = train(0)
    assert len(whole.seen) == 8 + 2 * SIZE
    assert ends_with(lambda: train(4)) == -signal.SIGKILL
    again = Small().train(tmp_path / "4", save="1step")
    assert differing(whole, again) == []
    assert len(again.seen) == 2 * SIZE - 4
    assert again.run.position.epoch == EPOCHS


def test_what_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    with pytest.raises(ArgumentError, match="`engine` is the name under which the run keeps"):
        attach(engine, tmp_path / "run", engine=engine)
    attach(engine, tmp_path / "run")
    with pytest.raises(ArgumentError, match="runs without data, and a run counts its items: give some"):
        engine.run(epoch_length=3)
    engine = Engine(lambda engine, batch: None)
    attach(engine, tmp_path / "other")
    with pytest.raises(
        ArgumentError, match="epoch_length=3 is not the length of the data, and an epoch of a run is one"
    ):
        engine.run([1, 2], epoch_length=3)


# -- the files ---------------------------------------------------------------------------------------------------------


def checkpointed(saver: Any, n_saved: int | None = 1, **options: Any) -> Small:
    """A short training that saves its objects each two iterations."""
    small = Small()
    handler = Checkpoint({**small.objects, "engine": small.trainer}, saver, n_saved=n_saved, **options)
    small.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), handler)
    return small


def test_files_go_as_ignite_asks_and_plain_torch_reads_them(tmp_path: Path) -> None:
    saver = HoldfastSaver(tmp_path / "a" / "b")
    small = checkpointed(saver, n_saved=2).train(epochs=1)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["checkpoint_4.pt", "checkpoint_6.pt"]
    assert torch.load(tmp_path / "a" / "b" / "checkpoint_6.pt", weights_only=True)["engine"]["iteration"] == 6
    again = Small()
    Checkpoint.load_objects({**again.objects, "engine": again.trainer}, saver.load("checkpoint_6.pt"))
    assert again.trainer.state.iteration == 6
    other = Small()
    assert saver.restore("checkpoint_6.pt", **other.objects).missing == []
    for one in (again, other):
        assert all(torch.equal(v, one.net.state_dict()[k]) for k, v in small.net.state_dict().items())


class _Full:
    """A disk that is full after one file."""

    saves = 0

    def __call__(self, *args: Any) -> None:
        self.saves += 1
        if self.saves > 1:
            raise OSError(28, "No space left on device")
        super().__call__(*args)  # type: ignore[misc]


@pytest.mark.parametrize("base", [HoldfastSaver, DiskSaver])
def test_a_full_disk_leaves_a_file_only_here(tmp_path: Path, base: Any) -> None:
    saver = type("Full", (_Full, base), {})(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        checkpointed(saver).train(epochs=1)
    assert len(list(tmp_path.glob("*.pt"))) == (1 if base is HoldfastSaver else 0)


def test_a_file_is_flushed_to_the_disk_and_ignites_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(number), fsync(number))[1])
    DiskSaver(tmp_path)({"epoch": 1}, "a.pt")
    assert not flushed
    HoldfastSaver(tmp_path)({"epoch": 1}, "a.pt")
    assert len(flushed) >= 2  # the file, and the folder that names it


def test_a_flipped_bit_is_found_and_torch_alone_loads_it(tmp_path: Path) -> None:
    saver = HoldfastSaver(tmp_path)
    small = checkpointed(saver).train(epochs=1)
    file = tmp_path / "checkpoint_6.pt"
    flip_in(file, small.net[0].weight.detach().numpy().tobytes())
    with pytest.raises(CorruptFile, match="corrupt"):
        saver.load(file.name)
    loaded = torch.load(file)["model"]["0.weight"]
    assert not torch.equal(loaded, small.net[0].weight)


def test_a_planted_file_does_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    torch.save({"model": {}, "x": Planted(proof)}, tmp_path / "planted.pt")
    with pytest.raises(UntrustedType, match="mkdir"):
        HoldfastSaver(tmp_path).load("planted.pt")
    assert not proof.exists()
    torch.load(tmp_path / "planted.pt", weights_only=False)  # as many an example of Ignite has it
    assert proof.exists()


@pytest.mark.parametrize("ours", [True, False])
def test_nan_is_never_best_and_with_ignite_alone_it_is_for_ever(tmp_path: Path, ours: bool) -> None:
    scores = iter([float("nan"), 0.5, 0.9])
    small = Small()
    if ours:
        run = attach(
            small.trainer, tmp_path / "run", best="score:max", metrics=lambda: {"score": next(scores)}, **small.objects
        )
        small.train(epochs=3)
        assert run.best.metrics == {"score": 0.9}
    else:
        best = Checkpoint(
            small.objects, DiskSaver(tmp_path), score_function=lambda engine: next(scores), score_name="s"
        )
        small.trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
        small.train(epochs=3)
        assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_s=nan.pt"]


# -- what was there before ---------------------------------------------------------------------------------------------


def test_ignites_own_files_are_restored_adopted_and_begun_from(tmp_path: Path) -> None:
    small = checkpointed(DiskSaver(tmp_path / "old"), n_saved=None).train()
    net = Small().net
    report = holdfast.restore(tmp_path / "old" / "checkpoint_18.pt", model=net)
    assert report.missing == []
    adopted = holdfast.surgery.adopt(tmp_path / "old", tmp_path / "run")
    assert adopted is not None
    again = Small()
    with holdfast.Run(tmp_path / "run", **again.objects) as run:
        at = run.resume()
    assert at is not None
    assert at.step == EPOCHS * BATCHES
    for one in (net, again.net):
        assert all(torch.equal(v, one.state_dict()[k]) for k, v in small.net.state_dict().items())
    begun = Small().train(tmp_path / "new", epochs=1, start_from=tmp_path / "old" / "checkpoint_18.pt")
    assert begun.run.position.epoch == 1
