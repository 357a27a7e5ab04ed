"""A killed and resumed training ends with the very bits of an undisturbed one, whatever the loader."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.objects.loader import LoaderPart

SCRIPT = Path(__file__).with_name("small_training.py")
_spec = importlib.util.spec_from_file_location("small_training", SCRIPT)
small_training: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_training)


class Stopped(Exception):
    """Ends a training in the middle, as a crash of the program would."""


def stop_at(point: int) -> Any:
    def stop(done: int) -> None:
        if done == point:
            raise Stopped

    return stop


def interrupted(folder: Path, kind: str, point: int, **run: Any) -> tuple[str, list[str], list[str]]:
    """The fingerprint after a stop at ``point`` and a resume, and the data that either part saw."""
    before: list[str] = []
    after: list[str] = []
    with pytest.raises(Stopped):
        small_training.train(folder, kind, stop=stop_at(point), order=before, **run)
    found = small_training.train(folder, kind, order=after, **run)
    return found, before, after


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", list(small_training.LOADERS))
def test_every_loader_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    order: list[str] = []
    whole = small_training.train(None, kind, order=order)
    each = len(order) // small_training.EPOCHS
    inside = random.Random(kind).randrange(each + 4, 2 * each + 1)
    for point, saved in ((inside, (inside - 1) // 4 * 4), (2 * each + 1, 2 * each)):
        found, before, after = interrupted(tmp_path / str(point), kind, point, save="4step 1ep")
        assert before == order[:point]
        assert after == order[saved:], f"stopped at batch {point}: other data"
        assert found == whole, f"stopped at batch {point}: other weights, optimizer, scheduler or random state"


SOME = ["shuffle", "generator", "stream in workers", "own state", "torchdata", "torchdata, persistent workers"]


@pytest.mark.parametrize("kind", SOME)
def test_a_save_in_the_evaluation_repeats_nothing(kind: str, tmp_path: Path) -> None:
    def evaluate(run: holdfast.Run, epoch: int) -> None:
        if epoch == 1:
            run.save()
            raise Stopped

    with pytest.raises(Stopped):
        small_training.train(tmp_path / "run", kind, evaluate=evaluate, save="100ep")
    after: list[str] = []
    found = small_training.train(tmp_path / "run", kind, order=after, save="100ep")
    assert [line[0] for line in after] == ["2"] * small_training.BATCHES
    assert found == small_training.train(None, kind)


@pytest.mark.parametrize("kind", SOME)
def test_an_epoch_that_was_left_early_is_not_gone_on_with(kind: str, tmp_path: Path) -> None:
    whole: list[str] = []
    wanted = small_training.train(tmp_path / "whole", kind, order=whole, leave=4)
    before: list[str] = []
    after: list[str] = []
    with pytest.raises(Stopped):
        small_training.train(tmp_path / "run", kind, stop=stop_at(5), order=before, leave=4, save="1ep")
    assert small_training.train(tmp_path / "run", kind, order=after, leave=4, save="1ep") == wanted
    assert (before, after) == (whole[:5], whole[4:])


@pytest.mark.parametrize("kind", ["shuffle", "torchdata, generator"])
def test_holdfast_itself_changes_nothing_in_an_undisturbed_training(kind: str, tmp_path: Path) -> None:
    assert small_training.train(tmp_path / "run", kind) == small_training.train(None, kind)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["shuffle", "torchdata, workers"])
def test_sigkill_at_random_points_and_a_fresh_process(kind: str, tmp_path: Path, repository: Path) -> None:
    points = 2  # one behind a batch, one at a time
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    command = [sys.executable, str(SCRIPT), str(tmp_path), kind, "11", str(points)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=290, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == points
    assert all(line["killed"] for line in lines)
    assert [line["point"] for line in lines if not line["same"]] == []


def test_the_proof_fails_without_random_state(tmp_path: Path) -> None:
    found, _, _ = interrupted(tmp_path / "run", "shuffle", 8, rng=False)
    assert found != small_training.train(None, "shuffle")


def test_the_proof_fails_without_the_place_in_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    whole = small_training.train(None, "shuffle", order=order)
    monkeypatch.setattr(LoaderPart, "go_on", lambda self, state, rng: self.begin())
    after: list[str] = []
    with pytest.raises(Stopped):
        small_training.train(tmp_path / "run", "shuffle", stop=stop_at(9))
    assert small_training.train(tmp_path / "run", "shuffle", order=after) != whole
    assert after != order[-len(after) :]
