"""Lightning alone, and with one line of holdfast: what goes wrong, and that it does not."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, NotFound, UntrustedType
from holdfast.integrations.lightning import HoldfastCallback, HoldfastIO
from tests.integrations.forking import ends_with
from tests.integrations.lightning_training import (
    BATCHES,
    EPOCHS,
    SIZE,
    Net,
    Stop,
    Two,
    data,
    differing,
    state_of,
    train,
)
from tests.integrations.planted import Planted, flip_in

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]
SAVES = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}


@pytest.fixture
def whole(tmp_path: Path) -> Net:
    """The training that nothing stopped."""
    return train(tmp_path)


# -- the run -----------------------------------------------------------------------------------------------------------


def test_the_callback_changes_nothing_of_a_training(tmp_path: Path, whole: Net) -> None:
    assert differing(whole, train(tmp_path, HoldfastCallback(tmp_path / "run", save="2step 1ep signal"))) == []


@pytest.mark.parametrize("stop", [3, 6, 8, 13])
@pytest.mark.parametrize("save", ["1step", "1ep"])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, whole: Net, stop: int, save: str) -> None:
    root = tmp_path / "run"
    code = ends_with(lambda: train(tmp_path, HoldfastCallback(root, save=save), Stop(stop)))
    again = train(tmp_path, HoldfastCallback(root, save=save))
    assert code == -signal.SIGKILL
    assert differing(whole, again) == []
    done = SIZE * EPOCHS - len(again.seen)  # a killed batch is trained again, and none that was committed
    assert done == {"1step": stop - 1, "1ep": (stop - 1) // BATCHES * BATCHES}[save] * 4 - 2 * ((stop - 1) // BATCHES)


@pytest.mark.parametrize(
    ("shape", "stop", "background"),
    [
        ({"accumulate_grad_batches": 2}, 8, False),
        ({"val_check_interval": 2}, 3, False),
        ({"kind": Two}, 9, False),
        ({"precision": "bf16-mixed", "gradient_clip_val": 0.1}, 13, True),
    ],
    ids=["accumulating", "validating between steps", "two optimizers", "in the background"],
)
def test_so_does_one_that(tmp_path: Path, shape: dict[str, Any], stop: int, background: bool) -> None:
    def kept() -> HoldfastCallback:
        return HoldfastCallback(tmp_path / "run", save="1step", background=background)

    code = ends_with(lambda: train(tmp_path, kept(), Stop(stop), **shape))
    again = train(tmp_path, kept(), **shape)
    assert code == -signal.SIGKILL
    assert differing(train(tmp_path, **shape), again) == []
    assert len(again.seen) < SIZE * EPOCHS


def test_lightning_alone_goes_on_in_an_epoch_with_other_data(tmp_path: Path, whole: Net) -> None:
    code = ends_with(lambda: train(tmp_path, ModelCheckpoint(tmp_path, **SAVES), Stop(3), enable_checkpointing=True))
    again = train(tmp_path, ckpt_path=tmp_path / "step=2.ckpt")
    assert code == -signal.SIGKILL
    assert again.seen[: SIZE - 2 * 4] != whole.seen[2 * 4 : SIZE]
    assert {"layers.0.weight", "rng"} <= set(differing(whole, again))


def test_lightning_alone_loses_random_state_and_a_scheduler_step_between_epochs(tmp_path: Path, whole: Net) -> None:
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    ends_with(lambda: train(tmp_path, saved, Stop(BATCHES + 1), enable_checkpointing=True))
    again = train(tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert {"layers.0.weight", "rng", "lr"} <= set(differing(whole, again))


def test_sigterm_commits_and_says_so_with_its_exit_code(tmp_path: Path, whole: Net) -> None:
    root = tmp_path / "run"
    stop = Stop(4, signal.SIGTERM)
    assert ends_with(lambda: train(tmp_path, HoldfastCallback(root, save="1ep signal"), stop)) == 128 + signal.SIGTERM
    assert holdfast.load(root)["loops"]["epoch_loop.batch_progress"]["total"]["completed"] == 4
    assert differing(whole, train(tmp_path, HoldfastCallback(root))) == []


@pytest.mark.parametrize("fails", [False, True])
def test_no_handler_of_the_run_is_left_behind(tmp_path: Path, fails: bool) -> None:
    class Fails(Stop):
        def on_train_batch_end(self, *_: Any) -> None:
            if fails:
                raise ValueError("bad data")

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ValueError, match="bad data") if fails else nullcontext():
        train(tmp_path, HoldfastCallback(tmp_path / "run", save="1ep signal"), Fails(0), epochs=1)
    assert [signal.getsignal(number) for number in numbers] == before


def test_lightning_alone_ends_with_exit_code_0_and_no_checkpoint(tmp_path: Path) -> None:
    stop = Stop(4, signal.SIGTERM)
    assert ends_with(lambda: train(tmp_path, ModelCheckpoint(tmp_path), stop, enable_checkpointing=True)) == 0
    assert list(tmp_path.glob("*.ckpt")) == []


def test_sigterm_in_the_validation_of_an_epoch_commits_it(tmp_path: Path, whole: Net) -> None:
    class InValidation(Stop):
        on_train_batch_end = None  # type: ignore[assignment]

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if not trainer.sanity_checking:
                os.kill(os.getpid(), signal.SIGTERM)

    root = tmp_path / "run"
    code = ends_with(lambda: train(tmp_path, HoldfastCallback(root, save="1ep signal"), InValidation(0)))
    assert code == 128 + signal.SIGTERM
    assert differing(whole, train(tmp_path, HoldfastCallback(root))) == []


def test_the_metrics_of_an_epoch_are_committed_with_it_and_the_best_one_stays(tmp_path: Path) -> None:
    kept = HoldfastCallback(tmp_path / "run", best="val_loss:min", keep="last:1")
    net = train(tmp_path, kept, epochs=4)
    losses = {
        step.step: step.manifest.metrics["val_loss"] for step in holdfast.runs.catalog.scan(kept.run.path).readable
    }  # type: ignore[union-attr]
    assert kept.run.best.metrics["val_loss"] == min(losses.values())
    assert max(losses) == 4 * BATCHES == kept.run.position.step
    assert losses[max(losses)] == pytest.approx(net.trainer.callback_metrics["val_loss"].item())
    assert len(losses) <= 2
    model = kept.run.best.build()
    assert not model.training
    assert model is not net


def test_an_epoch_without_a_validation_has_no_metrics_of_another(tmp_path: Path) -> None:
    kept = HoldfastCallback(tmp_path / "run", best="val_loss:min")
    train(tmp_path, kept, epochs=4, check_val_every_n_epoch=2, kind=Two)
    steps = holdfast.runs.catalog.scan(kept.run.path).readable
    assert [sorted(one.manifest.metrics) for one in steps if one.manifest] == [[], ["val_loss"], [], ["val_loss"]]


def test_more_epochs_go_on_behind_the_end(tmp_path: Path) -> None:
    root = tmp_path / "run"
    train(tmp_path, HoldfastCallback(root), epochs=2)
    more = train(tmp_path, HoldfastCallback(root), epochs=EPOCHS)
    assert differing(train(tmp_path), more) == []
    assert len(more.seen) == SIZE
    assert train(tmp_path, HoldfastCallback(root)).seen == []


def test_a_training_that_ends_inside_an_epoch_goes_on_there(tmp_path: Path) -> None:
    root = tmp_path / "run"
    train(tmp_path, HoldfastCallback(root), max_steps=8)
    again = train(tmp_path, HoldfastCallback(root), max_steps=15)
    assert again.seen == train(tmp_path, max_steps=15).seen[-len(again.seen) :]
    assert len(again.seen) == 7 * 4 - 2


def test_the_other_callbacks_go_on_too(tmp_path: Path) -> None:
    root = tmp_path / "run"

    def saver() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "files", monitor="val_loss", filename="{epoch}")

    first = saver()
    train(tmp_path, HoldfastCallback(root), first, epochs=2, enable_checkpointing=True)
    second = saver()
    train(tmp_path, HoldfastCallback(root), second, epochs=2, enable_checkpointing=True)
    assert second.best_model_path == first.best_model_path
    assert second.best_model_score == first.best_model_score


def test_an_error_commits_what_was_done_before(tmp_path: Path) -> None:
    class Fails(Stop):
        def on_train_batch_end(self, *_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data") as caught:
        train(tmp_path, HoldfastCallback(tmp_path / "run", save="1ep exception"), Fails(3))
    assert any("step 3 of the run is saved" in note for note in caught.value.__notes__)
    assert differing(train(tmp_path), train(tmp_path, HoldfastCallback(tmp_path / "run"))) == []


def test_a_checkpoint_of_lightning_and_a_run_that_goes_on_contradict(tmp_path: Path) -> None:
    root = tmp_path / "run"
    train(tmp_path, HoldfastCallback(root), ModelCheckpoint(tmp_path), epochs=1, enable_checkpointing=True)
    (file,) = tmp_path.glob("*.ckpt")
    with pytest.raises(ArgumentError, match=r"goes on by itself from step 6, and fit was given ckpt_path=.*leave it"):
        train(tmp_path, HoldfastCallback(root), ckpt_path=file)


def test_a_run_of_another_model_is_refused_and_let_go(tmp_path: Path) -> None:
    with holdfast.Run(tmp_path / "run", model=torch.nn.Linear(1, 1)) as run:
        run.save(step=1)
    for _ in range(2):  # and not RunLocked, the second time
        with pytest.raises(NotFound, match=r"has no part for `(loops|optimizer|callbacks|hooks)`"):
            train(tmp_path, HoldfastCallback(tmp_path / "run"))


def test_two_training_loaders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.integrations.lightning_training.data", lambda: [data(), data()])
    with pytest.raises(ArgumentError, match="keeps the place of one training loader, and there are 2: give one"):
        train(tmp_path, HoldfastCallback(tmp_path / "run"))


def test_a_loader_without_a_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(torch.randn(4, 3))

    monkeypatch.setattr("tests.integrations.lightning_training.data", lambda: torch.utils.data.DataLoader(Stream()))
    with pytest.raises(ArgumentError, match="has no length, and Lightning then draws an item before the one"):
        train(tmp_path, HoldfastCallback(tmp_path / "run"))


# -- the files ---------------------------------------------------------------------------------------------------------


def saved_by(io: CheckpointIO, folder: Path) -> Path:
    """The file of a short training."""
    train(folder, ModelCheckpoint(folder), epochs=1, enable_checkpointing=True, plugins=[io])
    (file,) = folder.glob("*.ckpt")
    return file


def test_a_file_of_holdfast_is_resumed_and_read_by_torch_and_by_lightning(tmp_path: Path) -> None:
    file = saved_by(HoldfastIO(), tmp_path)
    torch_reads = torch.load(file, weights_only=True)
    loaded = Net.load_from_checkpoint(file)
    on = train(tmp_path, epochs=2, ckpt_path=file, plugins=[HoldfastIO()])
    same = train(tmp_path, epochs=2, ckpt_path=file)
    assert torch_reads["hyper_parameters"] == {"width": 4}
    assert all(torch.equal(value, torch_reads["state_dict"][name]) for name, value in loaded.state_dict().items())
    assert differing(on, same) == []


def test_a_flipped_bit_is_found_and_lightning_alone_trains_on_with_it(tmp_path: Path) -> None:
    for io, found in ((HoldfastIO(), True), (TorchCheckpointIO(), False)):
        folder = tmp_path / type(io).__name__
        file = saved_by(io, folder)
        weight = torch.load(file)["state_dict"]["layers.0.weight"]
        flip_in(file, weight.numpy().tobytes())
        if found:
            with pytest.raises(CorruptFile, match="corrupt"):
                train(folder, epochs=2, ckpt_path=file, plugins=[io])
        else:
            train(folder, epochs=2, ckpt_path=file, plugins=[io])


def test_a_planted_file_runs_in_lightning_alone_and_never_here(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    torch.save({"state_dict": {}, "x": Planted(proof)}, tmp_path / "planted.ckpt")
    with pytest.raises(UntrustedType, match=r"posix\.mkdir|nt\.mkdir"):
        HoldfastIO().load_checkpoint(tmp_path / "planted.ckpt", weights_only=False)
    assert not proof.exists()
    TorchCheckpointIO().load_checkpoint(tmp_path / "planted.ckpt", weights_only=False)
    assert proof.exists()


def test_a_file_is_flushed_to_the_disk_and_lightnings_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(number), fsync(number))[1])
    TorchCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    assert not flushed
    HoldfastIO().save_checkpoint({"epoch": 1}, tmp_path / "a.ckpt")
    assert len(flushed) >= 2  # the file, and the folder that names it


class _Full:
    """A disk that is full after one file."""

    saves = 0
    written: threading.Event

    def save_checkpoint(self, *args: Any, **options: Any) -> None:
        self.saves += 1
        if self.saves > 1:
            raise OSError(28, "No space left on device")
        super().save_checkpoint(*args, **options)  # type: ignore[misc]
        self.written.set()


class _Written(Callback):
    """Waits for the first file, which is written in the background, before another takes its place."""

    def __init__(self, written: threading.Event) -> None:
        self.written = written

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        assert trainer.global_step != 2 or self.written.wait(60)


@pytest.mark.parametrize("base", [HoldfastIO, TorchCheckpointIO])
def test_a_full_disk_in_the_background_leaves_a_file_only_here(tmp_path: Path, base: type[CheckpointIO]) -> None:
    io = type("Full", (_Full, base), {"written": threading.Event()})()
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, saves, _Written(io.written), enable_checkpointing=True, plugins=[AsyncCheckpointIO(io)])
    assert len(list(tmp_path.glob("*.ckpt"))) == (1 if base is HoldfastIO else 0)


def test_files_are_removed_as_lightning_asks_in_the_background_too(tmp_path: Path) -> None:
    for io in (HoldfastIO(), AsyncCheckpointIO(HoldfastIO())):
        folder = tmp_path / type(io).__name__
        saves = ModelCheckpoint(folder, every_n_train_steps=2, monitor="step", mode="max", save_top_k=2)
        train(folder, saves, enable_checkpointing=True, plugins=[io])
        names = {path.name for path in folder.glob("*.ckpt")}
        assert names == {os.path.basename(path) for path in saves.best_k_models}


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    io = HoldfastIO()
    with pytest.raises(ArgumentError, match="takes no storage_options"):
        io.save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"x": 1})
    with pytest.raises(NotFound, match=r"none.ckpt"):
        io.load_checkpoint(tmp_path / "none.ckpt")
    io.remove_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ArgumentError, match="run`: no fit is under way"):
        HoldfastCallback(tmp_path / "run").on_train_epoch_start(None, Net())


# -- what was there before ---------------------------------------------------------------------------------------------


def test_lightnings_own_files_are_restored_adopted_and_begun_from(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "old", save_top_k=-1, filename="{epoch}-{val_loss:.3f}")
    last = train(tmp_path, saves, enable_checkpointing=True)
    net = Net()
    report = holdfast.restore(tmp_path / "old" / Path(saves.best_model_path).name, model=net)
    assert report.values["hyper_parameters"] == {"width": 4}
    holdfast.surgery.adopt(tmp_path / "old", tmp_path / "run", best="val_loss:min")
    with holdfast.Run(tmp_path / "run", model=net, optimizer=torch.optim.AdamW(net.parameters())) as run:
        at = run.resume()
    assert at is not None
    assert at.epoch == EPOCHS
    assert all(torch.equal(value, state_of(last)[name]) for name, value in net.state_dict().items())
    begun = HoldfastCallback(tmp_path / "new", start_from=Path(saves.best_model_path))
    train(tmp_path, begun, epochs=1)
    assert begun.run.position.epoch == 1


def test_pytorch_lightning_is_served_as_well(tmp_path: Path) -> None:
    program = tmp_path / "old_name.py"
    program.write_text(
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import pytorch_lightning as pl\n"
        "from pytorch_lightning.demos.boring_classes import BoringModel\n"
        "from holdfast.integrations.lightning import HoldfastCallback, HoldfastIO\n"
        "for epochs in (1, 2):\n"
        "    kept = HoldfastCallback('run')\n"
        "    trainer = pl.Trainer(max_epochs=epochs, callbacks=[kept], plugins=[HoldfastIO()], logger=False,\n"
        "        accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, limit_train_batches=3,\n"
        "        limit_val_batches=0)\n"
        "    trainer.fit(BoringModel())\n"
        "    print(kept.run.position.step, 'lightning.pytorch' in sys.modules)\n"
    )
    import subprocess

    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["3", "False", "6", "False"], done.stderr
