from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.doctor import not_promised
from holdfast.storage.filesystem import Feature, FileSystem

Holdfast = Callable[..., Any]


def disk(*features: Feature, kind: str = "ext4", shared: bool = False) -> FileSystem:
    return FileSystem("runs", kind, shared, 10, 20, features)


def test_doctor_says_versions_extras_machine_and_disk(holdfast: Holdfast, tmp_path: Path) -> None:
    code, out, err = holdfast("doctor", tmp_path)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["torch", importlib.metadata.version("torch")] in rows
    assert ["[torch]", "complete"] in rows
    assert any(row[:2] == ["commit", "works"] for row in rows)
    assert any(row[:3] == ["record", "lock", "works"] for row in rows)
    assert f"{tmp_path}: " in out
    assert list(tmp_path.iterdir()) == []


def test_doctor_json(holdfast: Holdfast, tmp_path: Path) -> None:
    found = json.loads(holdfast("doctor", tmp_path, "--json").out)
    assert found["versions"]["python"].startswith("3.")
    assert found["disk"]["total"] >= found["disk"]["free"] > 0
    assert [one["name"] for one in found["disk"]["features"]] == [
        "commit",
        "hard links",
        "record lock",
        "flock",
        "memfd",
        "free space",
    ]
    assert found["machine"]["cores"] >= 1


def test_doctor_names_what_is_not_installed(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "obstore":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert ["[remote]", "missing:", "obstore"] in [
        line.split() for line in holdfast("doctor", tmp_path).out.splitlines()
    ]


def test_doctor_where_nothing_can_be_saved(holdfast: Holdfast, tmp_path: Path) -> None:
    code, out, _ = holdfast("doctor", "/proc")  # a file system in which not even root makes a folder
    assert code == 5
    assert "  commit       fails  `/proc/holdfast-doctor-" in out
    assert "not promised here\n  commit: " in out
    assert "  free space   fails  not told; a save that does not fit shows while it is written\n" in out
    code, _, err = holdfast("doctor", tmp_path / "gone")
    assert code == 4
    assert err == f"holdfast: `{tmp_path / 'gone'}`: no such folder\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 580.0'", "gpu      NVIDIA H200, 143771 MiB, 580.0\n"),
        ("echo 'no device \x1b[2J'; exit 9", "gpu      none: nvidia-smi fails: no device \\x1b[2J\n"),
    ],
)
def test_gpus_are_asked_of_nvidia_smi(
    holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said in holdfast("doctor", tmp_path).out


def test_no_nvidia_smi_is_said(holdfast: Holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = holdfast("doctor", tmp_path).out
    assert "gpu      none: " in out
    assert "and no nvidia-smi to ask" in out


def test_what_is_not_promised() -> None:
    assert not_promised("linux", (3, 12), "cpython", disk()) == []
    assert not_promised("darwin", (3, 11), "cpython", disk()) == [
        "the system darwin: only Linux is tested; portable paths are taken"
    ]
    assert not_promised("linux", (3, 15), "pypy", disk()) == [
        "Python 3.15: 3.11 to 3.13 are tested",
        "Python's implementation pypy: only CPython is tested",
    ]
    (shared,) = not_promised("linux", (3, 12), "cpython", disk(kind="nfs4", shared=True))
    assert shared.startswith("nfs4 is shared between machines")
    works, optional, fails = (
        Feature("commit", True, True, ""),
        Feature("hard links", False, False, "copied"),
        Feature("flock", False, True, "no locks"),
    )
    assert not_promised("linux", (3, 12), "cpython", disk(works, optional, fails)) == ["flock: no locks"]


@pytest.mark.skipif(sys.byteorder != "little", reason="this machine is big-endian itself")
def test_big_endian_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    (said,) = not_promised("linux", (3, 12), "cpython", disk())
    assert said.startswith("a big-endian machine")
