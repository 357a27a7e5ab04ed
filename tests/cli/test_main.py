from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from holdfast.cli.main import VERBS, verbs
from tests.runs.hand_made import flip

WATCHED = """
import sys
from holdfast.cli.main import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "numpy"} & set(sys.modules)
    if heavy:
        print("imported", heavy, file=sys.stderr)
        import os; os._exit(99)
"""


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)


LIGHT = ["doctor", "explain", "inspect", "ls", "path", "prune", "show", "verify"]
"""Verbs that take a run and nothing else, and need no torch."""


@pytest.mark.parametrize("verb", LIGHT)
def test_no_verb_loads_torch(run: Path, verb: str) -> None:
    done = process(verb, run)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_json_help_and_an_example(holdfast: Callable[..., object], verb: str) -> None:
    command = verbs.get_command(click.Context(verbs), verb)
    assert command is not None
    assert command.name == verb
    code, out, _ = holdfast(verb, "--help")  # type: ignore[misc]
    assert code == 0
    assert "--json" in out
    assert f"holdfast {verb}" in out.split("Example:")[1]


@pytest.mark.parametrize("verb", LIGHT)
def test_json_of_every_verb_is_ascii_json(holdfast: Callable[..., object], run: Path, verb: str) -> None:
    code, out, err = holdfast(verb, run, "--json")  # type: ignore[misc]
    assert (code, err) == (0, "")
    assert out.isascii()
    assert isinstance(json.loads(out, parse_constant=pytest.fail), dict)


def test_exit_codes(holdfast: Callable[..., object], run: Path, tmp_path: Path) -> None:
    def code(*arguments: object) -> int:
        found, _, err = holdfast(*arguments)  # type: ignore[misc]
        assert err.count("\n") <= 1, "an error is one line"
        assert found == 0 or err.startswith("holdfast: ") or arguments[0] == "verify"
        return int(found)

    assert code("ls", run) == 0
    flip(run / "step-00000030" / "model.safetensors", 700)
    assert code("verify", run) == 2
    assert code("verify", f"{run}@best") == 0
    (tmp_path / "page").write_text("<html>")
    assert code("inspect", tmp_path / "page") == 2
    assert code("frobnicate") == 3
    assert code("ls") == 3
    assert code("ls", run, "--frobnicate") == 3
    assert code("path", f"{run}@lost") == 3
    assert code("ls", tmp_path / "gone") == 4
    assert code("show", f"{run}@step=11") == 4
    os.mkfifo(tmp_path / "pipe")
    assert code("inspect", tmp_path / "pipe") == 5


def test_usage_errors_name_the_help(holdfast: Callable[..., object]) -> None:
    _, out, err = holdfast("ls")  # type: ignore[misc]
    assert out == ""
    assert err == "holdfast: Missing argument 'DIR'. (see holdfast ls --help)\n"


def test_help_and_version(holdfast: Callable[..., object]) -> None:
    code, out, _ = holdfast("--help")  # type: ignore[misc]
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert holdfast("--version") == (0, f"holdfast {importlib.metadata.version('holdfast')}\n", "")


def test_python_m(run: Path) -> None:
    command = [sys.executable, "-m", "holdfast", "path", f"{run}@best"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(run / "step-00000020")


def test_a_reader_that_stops_early_is_no_error(run: Path) -> None:
    command = f"'{sys.executable}' -m holdfast inspect '{run}' --state | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run-checkpoint" in done.stdout


def test_no_colour_in_a_pipe_or_with_no_color(run: Path) -> None:
    assert "\x1b" not in process("verify", run).stdout
    command = [sys.executable, "-m", "holdfast", "verify", str(run)]
    script = f"import pty, sys; sys.exit(pty.spawn({command!r}) >> 8)"
    for environment, colour in (({}, True), ({"NO_COLOR": "1"}, False)):
        env = {**os.environ, "TERM": "xterm", **environment}
        if colour:
            env.pop("NO_COLOR", None)
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=False,
            timeout=60,
            env=env,
            stdin=subprocess.DEVNULL,
        )
        assert (b"\x1b[32mOK" in done.stdout) is colour
