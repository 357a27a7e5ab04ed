"""``holdfast prove`` on real scripts in real processes: the example, a loop of one's own, loader workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).parents[1] / "training" / "proved_script.py"


def prove(*arguments: object) -> tuple[int, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    command = [sys.executable, "-m", "holdfast", "prove", "--json", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_example_is_proved_and_the_audit_has_nothing_to_say(repository: Path, tmp_path: Path) -> None:
    script = repository / "examples" / "digits.py"
    code, found = prove("--kills", 4, script, tmp_path / "run", "--epochs", 2)
    assert (code, found["verdict"], found["audit"], found["notes"]) == (0, "same", [], [])
    assert len(found["kills"]) == 4
    assert any(kill["resumed"] and kill["resumed"] % 38 for kill in found["kills"]), "it never resumed inside an epoch"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arguments", [[], ["--workers=2"], ["--flaw=own loop"], ["--flaw=two"], ["--flaw=background"]])
def test_sound_scripts(arguments: list[str], seed: int, tmp_path: Path) -> None:
    code, found = prove("--seed", seed, SCRIPT, tmp_path / "run", *arguments)
    assert (code, found["verdict"]) == (0, "same"), found


@pytest.mark.parametrize(
    ("flaw", "kind"),
    [("rng", "rng"), ("sched", "scheduler"), ("ema", "object"), ("counter", "object"), ("order", "loader")],
)
def test_flaws(flaw: str, kind: str, tmp_path: Path) -> None:
    code, found = prove("--seed", 3, SCRIPT, tmp_path / "run", f"--flaw={flaw}")
    assert (code, found["verdict"], found["causes"][0]["kind"]) == (1, "differs", kind), found
