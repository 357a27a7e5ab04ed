"""The package as people install it: a wheel in a fresh environment without torch, asked by real processes.

The environment is of the Python that runs the tests. It has what the wheel depends on, copied from the environment of
the tests so that no network is needed, and nothing else: pip resolves the dependencies, and would fail for one more.
"""

from __future__ import annotations

import email
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from packaging.requirements import Requirement

import holdfast
from holdfast.cli.main import VERBS
from holdfast.runs.run_file import write_pin

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "holdfast"

WITHOUT_TORCH: dict[str, tuple[str, ...]] = {
    "adopt": ("old", "adopted", "--steps-per-epoch", "3"),
    "convert": ("net.pt", "converted.safetensors"),
    "diff": ("run@last", "run@-2"),
    "doctor": (),
    "explain": ("run",),
    "extract": ("ckpt.pt", "model", "-o", "part.pt"),
    "inspect": ("ckpt.pt",),
    "lint": ("train.py",),
    "ls": ("run",),
    "merge": ("a=net.pt", "b=net.pt", "-o", "merged.pt"),
    "path": ("run@last",),
    "pin": ("run@last", "paper"),
    "prune": ("run", "--keep", "last:1", "--dry-run"),
    "rename": ("net.pt", "renamed.pt", "--rename", "^0\\.", "first."),
    "rescue --skeleton": ("whole.pt",),
    "scan": ("whole.pt",),
    "show": ("run@last",),
    "strip": ("ckpt.pt", "weights.safetensors"),
    "unpin": ("run", "draft"),
    "verify": ("run",),
    "view": ("run", "-o", "page.html"),
}
"""What each verb is asked that needs no torch; it exits with 0, or with 1 where it finds a difference."""

WITH_TORCH: dict[str, tuple[str, ...]] = {
    "average": ("net.pt", "net.pt", "-o", "mean.pt"),
    "check": ("net.pt", "train.py:Net"),
    "export": ("net.pt", "net.onnx", "--input", "1x4"),
    "prove": ("train.py",),
    "quantize": ("net.pt", "q.pt", "--recipe", "dynamic-int8"),
    "rescue": ("whole.pt", "-o", "rescued.pt"),
    "stats": ("net.pt",),
}
"""Verbs that compute or call a model: they say what to install, and exit with 5."""

OTHER_EXTRA: dict[str, tuple[tuple[str, ...], str]] = {
    "fetch": (("s3://bucket/run@best", "here"), "pip install 'holdfast[remote]'"),
}
"""Verbs that need another package."""


def verb_of(key: str) -> str:
    return key.split()[0]


def asked(table: Iterable[str]) -> list[str]:
    """The keys of a table whose verb there is."""
    return sorted(key for key in table if verb_of(key) in VERBS)


class Installed(NamedTuple):
    """An environment, and a folder with files."""

    folder: Path
    files: Path

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment, which sees nothing of the one that runs the tests."""
        return subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.files, env={"PATH": str(self.folder / "bin"), "HOME": str(self.files), "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution, as `python -m build` would make them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="session")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, and files to ask about."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (libraries,) = folder.glob("lib/python*/site-packages")
    for name in dependencies("holdfast"):
        copy_distribution(name, libraries)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check", "install",
         "--no-index", "--quiet", built[0]],
        check=True,
    )  # fmt: skip
    files = tmp_path_factory.mktemp("files")
    write_files(files)
    return Installed(folder, files)


def dependencies(name: str) -> set[str]:
    """What a package depends on without its extras, and what that depends on."""
    wanted = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    direct = {one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}
    return direct.union(*map(dependencies, direct))


def copy_distribution(name: str, libraries: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts:  # a program in bin/
            (libraries / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), libraries / file)


def write_files(folder: Path) -> None:
    """A run with two checkpoints and a pin, files of several kinds, old checkpoints and a script."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    holdfast.save(net, folder / "net.pt")
    holdfast.save({"model": net, "optimizer": optimizer, "epoch": 3}, folder / "ckpt.pt")
    torch.save(net, folder / "whole.pt")
    (folder / "old").mkdir()
    for epoch in (1, 2):
        state = {"epoch": epoch, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "loss": 1 / epoch}
        torch.save(state, folder / "old" / f"checkpoint_{epoch}.pth")
    with holdfast.Run(folder / "run", model=net, optimizer=optimizer, best="loss:min") as run:
        for step in (1, 2):
            net[0].weight.data.add_(1)
            run.save(step=step, epoch=step, metrics={"loss": 1.0 / step})
    write_pin(folder / "run", "draft", 2)
    (folder / "train.py").write_text("import torch\n\nclass Net(torch.nn.Linear):\n    pass\n")


def test_torch_and_numpy_are_not_there(installed: Installed) -> None:
    for name in ("torch", "numpy"):
        assert f"No module named '{name}'" in installed.ask("python", "-c", f"import {name}").stderr


def test_it_is_installed_with_what_it_depends_on(installed: Installed) -> None:
    done = installed.ask("holdfast", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"holdfast {importlib.metadata.version('holdfast')}\n"
    done = installed.ask("python", "-c", "import holdfast; print(holdfast.__file__)")
    assert done.stdout.startswith(str(installed.folder))


def test_every_verb_says_what_it_does_without_torch() -> None:
    known = {verb_of(key) for key in (*WITHOUT_TORCH, *WITH_TORCH, *OTHER_EXTRA)}
    assert set(VERBS) <= known, "say in WITHOUT_TORCH or WITH_TORCH what a new verb is asked"


@pytest.mark.parametrize("verb", asked(WITHOUT_TORCH))
def test_a_light_verb_works(installed: Installed, verb: str) -> None:
    done = installed.ask("holdfast", *verb.split(), *WITHOUT_TORCH[verb])
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout


@pytest.mark.parametrize("verb", asked(WITH_TORCH))
def test_a_verb_that_needs_torch_says_the_line_to_install_it(installed: Installed, verb: str) -> None:
    done = installed.ask("holdfast", verb, *WITH_TORCH[verb])
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert re.fullmatch(r"holdfast: \S.* needs torch, which is not .*: pip install .holdfast\[torch\].\n", done.stderr)


@pytest.mark.parametrize("verb", asked(OTHER_EXTRA))
def test_a_verb_that_needs_another_package_says_so(installed: Installed, verb: str) -> None:
    arguments, line = OTHER_EXTRA[verb]
    done = installed.ask("holdfast", verb, *arguments)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("holdfast: ")
    assert done.stderr.endswith(f"{line}\n")
    assert done.stderr.count("\n") == 1


def test_a_call_from_python_says_the_line_too(installed: Installed) -> None:
    done = installed.ask("python", "-c", "import holdfast\nholdfast.load('net.pt')")
    said = 'holdfast.load needs torch, which is not installed: pip install "holdfast[torch]"'
    assert done.stderr.splitlines()[-1] == f"holdfast.errors.MissingExtra: {said}"


# -- what is in it


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        found = {name for name in wheel.namelist() if not name.startswith("holdfast-")}
    wanted = {f"holdfast/{file.relative_to(PACKAGE)}" for file in PACKAGE.rglob("*") if file.is_file()}
    assert found == {name for name in wanted if "__pycache__" not in name}
    assert "holdfast/py.typed" in found


def test_the_metadata_is_complete(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [one for one in wheel.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
        licences = [one for one in wheel.namelist() if one.endswith("licenses/LICENSE")]
        points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert licences
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# holdfast")
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(metadata.get_all("Classifier", []))
    assert {"torch", "remote", "export", "quant"} <= set(metadata.get_all("Provides-Extra", []))
    assert not any("torch" in one for one in metadata.get_all("Requires-Dist", []) if "extra" not in one)
    assert "holdfast = holdfast.cli.main:main" in points


def test_the_source_distribution_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(tmp_path, filter="data")
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "tests/conftest.py"} <= names
    (source,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (again,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(built[0]) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_json_is_the_same_as_with_torch(installed: Installed) -> None:
    arguments = ("inspect", "ckpt.pt", "--json")
    with_torch = subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments], cwd=installed.files, capture_output=True, text=True, check=True
    )
    found = installed.ask("holdfast", *arguments).stdout
    assert json.loads(found)["format"] == "torch-zip"
    assert found == with_torch.stdout
