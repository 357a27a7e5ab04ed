"""Trainings of every common shape, stopped inside an epoch and between two, end with the bits of an undisturbed one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import holdfast

_spec = importlib.util.spec_from_file_location("recipes", Path(__file__).with_name("recipes.py"))
recipes: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipes)


class Stopped(Exception):
    """Ends a training in the middle, as a crash of the program would."""


def train(root: Path | None, name: str, *, stop: int | None = None, **run: Any) -> dict[str, Any]:
    """Everything that has state at the end; without a root, of a training without holdfast."""
    recipe = recipes.RECIPES[name]()
    if root is None:
        for _ in range(recipes.EPOCHS):
            for number, batch in enumerate(recipe.loader):
                recipe.step(batch, number)
            recipe.evaluate()
        return dict(recipes.state_of(recipe))
    with holdfast.Run(root, **recipe.objects, **{"save": "1step 1ep", **run}) as training:
        for epoch in training.epochs(recipes.EPOCHS):
            for batch in training.batches(recipe.loader):
                recipe.step(batch, training.position.batch)
                if training.position.step == stop:
                    raise Stopped
            recipe.evaluate()
            training.end(epoch)
    return dict(recipes.state_of(recipe))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_it_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = train(None, name)
    assert len(whole) > 20
    for point in (7, 10):  # inside the second epoch, and at the beginning of the third
        with pytest.raises(Stopped):
            train(tmp_path / str(point), name, stop=point)
        found = train(tmp_path / str(point), name, save="9ep")
        assert [path for path in whole.keys() | found.keys() if whole.get(path) != found.get(path)] == []


@pytest.mark.parametrize(("name", "left_out"), [("schedulers", "warmup"), ("scaler", "scaler"), ("average", "ema")])
def test_the_proof_fails_when_one_object_is_left_out(
    name: str, left_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(None, name)
    original = holdfast.Run

    def forgetful(root: Path, **objects: Any) -> Any:
        return original(root, **{key: value for key, value in objects.items() if key != left_out})

    monkeypatch.setattr(holdfast, "Run", forgetful)
    with pytest.raises(Stopped):
        train(tmp_path / "run", name, stop=7)
    found = train(tmp_path / "run", name, save="9ep")
    assert any(path.startswith(left_out) and whole[path] != found.get(path) for path in whole)


@pytest.mark.parametrize("name", ["plain", "own generator"])
def test_the_proof_fails_without_random_state(name: str, tmp_path: Path) -> None:
    whole = train(None, name)
    with pytest.raises(Stopped):
        train(tmp_path / "run", name, stop=7, rng=False)
    found = train(tmp_path / "run", name, save="9ep", rng=False)
    assert {path for path in whole if whole[path] != found.get(path)} > {"torch", "python"}
