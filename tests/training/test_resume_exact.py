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
import torch

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


@pytest.fixture(autouse=True)
def one_thread(seeded: int) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", list(small_training.LOADERS))
def test_every_loader_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    order: list[str] = []
    whole = small_training.train(None, kind, order=order)
    draw = random.Random(kind)
    for number, point in enumerate(draw.sample(range(2, len(order)), 2 if "workers" in kind else 4)):
        found, before, after = interrupted(tmp_path / str(number), kind, point)
        assert before == order[:point]
        assert after == order[-len(after) :], f"stopped at batch {point}: other data"
        assert point - 2 <= len(order) - len(after) <= point, f"stopped at batch {point}: not from the last save"
        assert found == whole, f"stopped at batch {point}: other weights, optimizer, scheduler or random state"


def test_holdfast_itself_changes_nothing_in_an_undisturbed_training(tmp_path: Path) -> None:
    assert small_training.train(tmp_path / "run", "shuffle") == small_training.train(None, "shuffle")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["shuffle", "workers"])
def test_sigkill_at_random_batches_and_a_fresh_process(kind: str, tmp_path: Path, repository: Path) -> None:
    points = 20 if kind == "shuffle" else 3
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    command = [sys.executable, str(SCRIPT), str(tmp_path), kind, "11", str(points)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=True)
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


def test_other_data_than_before_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.errors import MismatchError

    with pytest.raises(Stopped):
        small_training.train(tmp_path / "run", "shuffle", stop=stop_at(6))
    monkeypatch.setattr(small_training, "SIZE", 4)
    with pytest.raises(MismatchError, match=r"batches of this epoch were done when it was saved, but it ends after 1"):
        small_training.train(tmp_path / "run", "shuffle")
