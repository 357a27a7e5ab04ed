"""A signal in the middle of a save: with the rule ``signal`` the save ends and is whole; without it, old or new."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_save_waits_for_its_end(number: int, script: Script, memory_disk: Path) -> None:
    (line,) = script("signalling", memory_disk, int(number), 3)
    assert line["wrong"] == []
    assert line["left"] == line["signals"] > 20


@pytest.mark.parametrize("name", ["saves that prune", "single files"])
def test_an_interrupt_in_a_save_leaves_the_old_or_the_new(name: str, script: Script, memory_disk: Path) -> None:
    (line,) = script("killing", memory_disk, 0, 1, 3, name, int(signal.SIGINT))
    assert line["wrong"] == []
    assert line["kills"] > 10
