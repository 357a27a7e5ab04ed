"""What holds for every verb: exit codes, JSON, one-line errors, torch only where it is needed, escaped names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import holdfast as library
from holdfast.cli.main import VERBS
from tests.runs.hand_made import commit, flip, tensor

Holdfast = Callable[..., Any]
EVIL = "\x1b[2J\u202e<b>\r\nFORGED"
"""A name that clears the screen, turns the line around and begins a line of its own."""


class Verb(NamedTuple):
    """How a verb is called.

    Attributes:
        good: what exits 0; ``{net}``, ``{run}`` and others are files of the folder. None: another test has it.
        torch: whether it needs torch.
        differs: what exits 1.
        corrupt: whether a damaged ``{net}`` or ``{run}`` is exit code 2.
        missing: whether a path that is not there is exit code 4.
    """

    good: str | None
    torch: bool = False
    differs: str | None = None
    corrupt: bool = True
    missing: bool = True


CASES = {
    "adopt": Verb("{old} {new} --dry-run", corrupt=False),
    "average": Verb("{net} {net} -o {new}", torch=True, differs="{net} {other} -o {new}"),
    "check": Verb("{net} {model}:Net", torch=True, differs="{other} {model}:Net"),
    "convert": Verb("{net} {new}"),
    "diff": Verb("{net} {net}", differs="{net} {other}"),
    "doctor": Verb("{folder}", corrupt=False),
    "explain": Verb("{run}", corrupt=False),
    "export": Verb("{net} {new}.pt2 --input 1x4", torch=True),
    "extract": Verb("{net} 0 -o {new}"),
    "fetch": Verb("{net} {folder}", corrupt=False, missing=False),
    "inspect": Verb("{net}"),
    "lint": Verb("{script}", differs="{mistaken}", corrupt=False),
    "ls": Verb("{run}", corrupt=False),
    "merge": Verb("a={net} b={other} -o {new}", differs="{net} {net} -o {new}"),
    "path": Verb("{run}@best", corrupt=False),
    "pin": Verb("{run}@best paper", corrupt=False),
    "prove": Verb(None, corrupt=False),
    "prune": Verb("{run} --keep last:1", corrupt=False),
    "quantize": Verb("{net} {new} --recipe dynamic-int8", torch=True),
    "rename": Verb("{net} {new} --add-prefix model", differs="{net} {new} --strip-prefix nothing"),
    "rescue": Verb("{whole} -o {new}", torch=True),
    "scan": Verb("{net}"),
    "show": Verb("{run}@best", corrupt=False),
    "stats": Verb("{net}", torch=True, differs="{plain} --fail-on dead"),
    "strip": Verb("{net} {new}"),
    "unpin": Verb("{run} first", corrupt=False),
    "verify": Verb("{net}", differs="--strict {plain}"),
    "view": Verb("{net} -o {new}"),
}
FILES = ("{net}", "{run}", "{whole}", "{old}", "{other}", "{folder}", "{script}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of file, made once."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3))
    library.save(net, root / "net.pt")
    library.save(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), root / "other.pt")
    torch.save(net, root / "whole.pth")
    torch.save({"w": torch.ones(3)}, root / "plain.pth", _use_new_zipfile_serialization=False)
    (root / "old").mkdir()
    state = {"model": net.state_dict(), "optimizer": torch.optim.SGD(net.parameters()).state_dict(), "epoch": 0}
    torch.save(state, root / "old" / "epoch_0.pth")
    (root / "model.py").write_text("from torch import nn\nNet = lambda: nn.Sequential(nn.Linear(4, 3))\n")
    (root / "train.py").write_text("import holdfast\nholdfast.save(net, 'net.pt')\n")
    (root / "mistaken.py").write_text("import torch\ntorch.save(net, 'net.pt')\nnet.load_state_dict(s, strict=False)\n")
    with library.Run(root / "run", model=net, best="loss:min") as run:
        run.save(step=1, epoch=0, metrics={"loss": 1.0})
        run.save(step=2, epoch=1, metrics={"loss": 2.0})
    from holdfast.runs.run_file import write_pin

    write_pin(str(root / "run"), "first", 1)
    return root


@pytest.fixture
def files(made: Path, tmp_path: Path) -> dict[str, str]:
    """Copies of them, by the names that the cases use."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    names = {"net": "net.pt", "other": "other.pt", "whole": "whole.pth", "plain": "plain.pth", "model": "model.py"}
    names |= {"script": "train.py", "mistaken": "mistaken.py"}
    found = {name: str(tmp_path / file) for name, file in names.items()}
    return found | {name: str(tmp_path / name) for name in ("run", "old", "new")} | {"folder": str(tmp_path)}


def arguments(verb: str, line: str, files: dict[str, str]) -> list[str]:
    return [verb, *(part.format(**files) for part in line.split())]


def of(kind: Callable[[Verb], object]) -> list[str]:
    return sorted(verb for verb, case in CASES.items() if kind(case))


def one_line(err: str) -> bool:
    return err.startswith("holdfast: ") and err.count("\n") == 1 and err.endswith("\n")


def test_every_verb_has_its_cases() -> None:
    assert set(CASES) == set(VERBS)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("verb", of(lambda case: case.good))
def test_what_is_well_exits_0_in_words_and_in_json(holdfast: Holdfast, files: dict[str, str], verb: str) -> None:
    good = CASES[verb].good
    assert good is not None
    in_json = holdfast(*arguments(verb, good, files), "--json")
    assert (in_json.code, in_json.err) == (0, "")
    assert in_json.out.isascii()
    assert json.loads(in_json.out, parse_constant=pytest.fail) is not None
    if verb == "unpin":
        holdfast("pin", f"{files['run']}@best", "first")
    code, out, err = holdfast(*arguments(verb, good.replace("{new}", "{new}2"), files))
    assert (code, err) == (0, "")
    assert out.strip()
    assert not out.startswith("{\n")


@pytest.mark.parametrize("verb", of(lambda case: case.differs))
@pytest.mark.parametrize("json_too", [False, True])
def test_what_differs_exits_1(holdfast: Holdfast, files: dict[str, str], verb: str, json_too: bool) -> None:
    differs = CASES[verb].differs
    assert differs is not None
    code, out, err = holdfast(*arguments(verb, differs, files), *(["--json"] if json_too else []))
    assert code == 1
    assert out or one_line(err)


@pytest.mark.parametrize("verb", of(lambda case: case.corrupt))
def test_what_is_damaged_exits_2(holdfast: Holdfast, files: dict[str, str], verb: str) -> None:
    for name in ("net", "whole"):
        Path(files[name]).write_bytes(b"PK\x03\x04" + bytes(200))
    good = CASES[verb].good
    assert good is not None
    code, out, err = holdfast(*arguments(verb, good, files))
    assert code == 2
    assert one_line(err) or verb in ("verify", "scan")
    assert not Path(files["new"]).exists()
    assert out or err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_wrong_command_line_exits_3(holdfast: Holdfast, verb: str) -> None:
    unknown = (
        ("--kills", "many", "x") if verb == "prove" else ("--frobnicate",)
    )  # what it does not know is the script's
    for given in (("a", "b", "c") if verb == "doctor" else (), unknown):
        code, out, err = holdfast(verb, *given)
        assert (code, out) == (3, "")
        assert one_line(err)
        assert f"(see holdfast {verb} --help)" in err


@pytest.mark.parametrize("verb", of(lambda case: case.missing))
def test_what_is_not_there_exits_4(holdfast: Holdfast, files: dict[str, str], verb: str) -> None:
    good = CASES[verb].good or "{net}"
    for name in FILES:
        good = good.replace(name, "{gone}")
    code, out, err = holdfast(*arguments(verb, good, {**files, "gone": f"{files['folder']}/gone"}))
    assert (code, out) == (4, "")
    assert one_line(err)
    assert "gone" in err


@pytest.mark.parametrize("line", ["prune {run} --keep last:1", "verify {run} --set-aside"])
def test_a_run_that_another_process_writes_exits_5(holdfast: Holdfast, run: Path, live: object, line: str) -> None:
    code, out, err = holdfast(*line.format(run=run).split())
    assert (code, out) == (5, "")
    assert one_line(err)


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from holdfast.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("verb", of(lambda case: case.good))
def test_without_torch_it_works_or_says_what_to_install(files: dict[str, str], verb: str) -> None:
    case = CASES[verb]
    line = arguments(verb, str(case.good), files)
    env = {**os.environ, "PYTHONPATH": str(Path(library.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *line]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    if case.torch:
        assert done.returncode == 5
        assert done.stderr == f'holdfast: {verb} needs torch, which is not installed: pip install "holdfast[torch]"\n'
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_a_diff_without_torch_says_what_differs(files: dict[str, str]) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    library.save(net, files["new"])
    env = {**os.environ, "PYTHONPATH": str(Path(library.__file__).parents[1])}
    command = [sys.executable, "-c", WITHOUT_TORCH, "diff", files["net"], files["new"], "--keys", "*bias"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 changed, 0 tensors the same" in done.stdout
    assert "0.bias     (3,) float32" in done.stdout
    assert "torch is not installed" in done.stdout


# ---- hostile names ---------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(files: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Files whose own names, and everything in them, are hostile."""
    home = tmp_path / EVIL.replace("/", "")
    home.mkdir()
    tree = {"0": {"weight": torch.ones(3, 4), "bias": torch.ones(3), EVIL: torch.ones(2)}, EVIL: EVIL}
    library.save({"model": tree["0"], **tree}, home / "net.pt", metadata={EVIL: EVIL})
    library.save({"model": {EVIL: torch.zeros(2)}, EVIL: 1, "0": 1}, home / "other.pt")
    torch.save({EVIL: torch.ones(3)}, home / "plain.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.ModuleDict({EVIL.replace(".", ""): nn.Linear(2, 2)}), home / "whole.pth")
    (home / "old").mkdir()
    torch.save({EVIL: {"w": torch.ones(1)}, "epoch": EVIL, "optimizer": 3}, home / "old" / f"{EVIL}_epoch_1.pth")
    for name in ("train.py", "mistaken.py"):
        (home / name).write_text(f"import torch\ntorch.save(net, {EVIL!r})\nbest = a['{EVIL[1:3]}'].state_dict()\n")
    objects = {EVIL: {"class": EVIL, "kind": EVIL}}
    for step in (1, 2):
        commit(
            home / "run",
            step,
            {"model": {EVIL: tensor(3)}, EVIL: EVIL},
            metrics={EVIL: float(step)},
            objects=objects,
            environment={EVIL: EVIL},
        )
    (home / "run" / "quarantine" / f"step-00000009{EVIL}").mkdir(parents=True)
    flip(home / "run" / "step-00000001" / "model.safetensors", -1)
    here = {name: path.replace(str(tmp_path), str(home)) for name, path in files.items() if name != "model"}
    return here | {"model": files["model"]}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_hostile_name_reaches_the_terminal_as_it_is(holdfast: Holdfast, evil: dict[str, str], verb: str) -> None:
    case = CASES[verb]
    lines = [one for one in (case.good or "{net}", case.differs) if one]
    if "@best" in lines[0]:
        lines.append(lines[0].replace("@best", ""))
    seen = ""
    for line in [*lines, "{folder}/gone {folder}/gone", "{folder} {folder} {folder} {folder}"]:
        result = holdfast(*arguments(verb, line, evil))
        assert result.code in (0, 1, 2, 3, 4, 5)
        seen += result.out + result.err
    for bad in ("\x1b[2J", "\u202e", "\r", "\nFORGED"):
        assert bad not in seen, seen
    assert "FORGED" in seen
