"""A signal in the middle of a save: with the rule ``signal`` the save ends and is whole; without it, old or new."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.scenarios import SCENARIOS

Script = Callable[..., list[dict[str, Any]]]


def test_a_signal_in_a_save_waits_for_its_end(script: Script, memory_disk: Path) -> None:
    lines = script("signalling", memory_disk, 6, int(signal.SIGTERM), int(signal.SIGINT))
    for line in lines:
        assert line["wrong"] == []
        assert line["left"] == line["signals"] > 15
    assert len(lines) == 2


def test_an_interrupt_in_a_save_leaves_the_old_or_the_new(script: Script, memory_disk: Path) -> None:
    lines = script("killing", memory_disk, 0, 2, 4, "saves that prune,single files", int(signal.SIGINT))
    for line in lines:
        assert line["wrong"] == []
        assert line["kills"] > 7
    assert len(lines) == 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_signal_at_many_more_calls(script: Script, memory_disk: Path, counted: Callable[[str], None]) -> None:
    waits = script("signalling", memory_disk / "waits", 1, int(signal.SIGTERM), int(signal.SIGINT), timeout=600)
    stops = script("killing", memory_disk / "stops", 0, len(SCENARIOS), 2, "", int(signal.SIGINT), timeout=600)
    assert [line["wrong"] for line in waits + stops if line["wrong"]] == []
    counted(
        f"signals in a save: {sum(line['signals'] for line in waits)} waited for its end, "
        f"{sum(line['kills'] for line in stops)} interrupts left the old or the new"
    )
