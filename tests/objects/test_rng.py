from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import holdfast
from holdfast.errors import CorruptFile
from holdfast.objects.rng import _restore_cuda, capture_rng, restore_rng


def draw() -> list[Any]:
    return [random.random(), np.random.rand(), torch.rand(1).item()]


def test_every_global_generator_goes_on(seeded: int, tmp_path: Any) -> None:
    draw()
    holdfast.save({"rng": capture_rng()}, tmp_path / "r.pt")
    wanted = draw()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert restore_rng(holdfast.load(tmp_path / "r.pt")["rng"], "r.pt") == []
    assert draw() == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"python": (3, (1, 2), None)},
        {"python": 5},
        {"torch": torch.zeros(3)},
        {"torch": torch.zeros(16, dtype=torch.uint8)},
        {"numpy": ("MT19937", [1, 2], 0)},
        {"numpy": None},
    ],
    ids=["short", "number", "floats", "cut", "numpy_short", "numpy_none"],
)
def test_a_state_that_is_none_is_no_success(change: dict[str, Any], seeded: int) -> None:
    before = capture_rng()
    other = {**before, **change}
    if "python" not in change:
        other["python"] = random.Random(9).getstate()
    with pytest.raises(CorruptFile, match=r"`r.pt`: its random state can't be restored: .") as caught:
        restore_rng(other, "r.pt")
    assert caught.value.path == "rng"
    assert random.getstate() == before["python"]
    assert torch.equal(torch.get_rng_state(), before["torch"])


def test_a_missing_state_is_no_success(seeded: int) -> None:
    with pytest.raises(CorruptFile, match=r"its random state can't be restored: 'torch'"):
        restore_rng({"python": random.getstate()}, "r.pt")


def test_devices_that_are_not_here_are_said() -> None:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    states = [torch.zeros(16, dtype=torch.uint8)] * 2
    if here == 0:
        assert _restore_cuda(states) == [
            "random state of 2 CUDA devices was saved, 0 are here: runs on are not bit-identical"
        ]


def test_a_generator_is_an_object(tmp_path: Any) -> None:
    one, other = torch.Generator().manual_seed(5), torch.Generator()
    torch.rand(3, generator=one)
    holdfast.save({"generator": one}, tmp_path / "g.pt")
    wanted = torch.rand(3, generator=one)
    holdfast.restore(tmp_path / "g.pt", generator=other)
    assert torch.equal(torch.rand(3, generator=other), wanted)
