"""holdfast scan on the command line."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

Holdfast = Callable[..., Any]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


class Own:
    pass


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    torch.save(nn.Linear(1, 1), tmp_path / "torch.pt")
    torch.save(Own(), tmp_path / "own.pt")
    torch.save({"w": torch.ones(2), "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps([Own()], protocol=2)[:-2])
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_a_folder_without_files_is_said(holdfast: Holdfast, tmp_path: Path) -> None:
    assert holdfast("scan", tmp_path) == (4, "", f"holdfast: `{tmp_path}`: has no files\n")


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("plain.pt", 0, "plain: nothing in it asks to run code"),
        ("torch.pt", 0, "torch: would make objects of torch's own classes"),
        ("own.pt", 0, "unknown: would import code that is not known to be harmless"),
        ("evil.pt", 2, "dangerous: could run any code if it were unpickled: do not"),
        ("cut.pkl", 2, "not scanned: a part of it could not be looked into"),
        ("notes.txt", 0, "holds no pickle: nothing in it can run code"),
    ],
)
def test_verdict_and_exit_code(holdfast: Holdfast, files: Path, name: str, code: int, line: str) -> None:
    found = holdfast("scan", files / name)
    assert (found.code, found.err) == (code, "")
    assert found.out.splitlines()[0].startswith(f"{files / name}: {line}")


def test_the_worst_comes_first(holdfast: Holdfast, files: Path) -> None:
    lines = holdfast("scan", files / "evil.pt").out.splitlines()
    assert lines[1].split() == ["verdict", "would", "import", "calls"]
    assert lines[2].split()[:3] == ["dangerous", f"{os.system.__module__}.system", "1"]


def test_a_folder(holdfast: Holdfast, files: Path) -> None:
    (files / "link.pt").symlink_to(files / "evil.pt")
    found = holdfast("scan", files, "--json")
    assert found.code == 2
    verdicts = {Path(one["file"]).name: one["verdict"] for one in json.loads(found.out)}
    assert verdicts == {
        "plain.pt": "plain", "torch.pt": "torch", "own.pt": "unknown", "evil.pt": "dangerous", "cut.pkl": "unknown",
        "notes.txt": "plain",
    }  # fmt: skip
    (files / "empty").mkdir()
    assert holdfast("scan", files / "empty").code == 4


def test_json(holdfast: Holdfast, files: Path) -> None:
    (one,) = json.loads(holdfast("scan", files / "evil.pt", "--json").out)
    assert one["dangerous"] is True
    (part,) = one["pickles"]
    assert (part["where"], part["offset"], part["problem"]) == ("evil/data.pkl", 0, None)
    assert {"name": f"{os.system.__module__}.system", "verdict": "dangerous", "calls": 1} in [
        {key: name[key] for key in ("name", "verdict", "calls")} for name in part["names"]
    ]


def test_names_are_escaped(holdfast: Holdfast, tmp_path: Path) -> None:
    name = "x\x1b[2J\u202e".encode()
    (tmp_path / "b.pkl").write_bytes(b"\x80\x04\x8c" + bytes([len(name)]) + name + b"\x8c\x01y\x93)R.")
    out = holdfast("scan", tmp_path).out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "x\\x1b[2J\\u202e.y" in out


def test_no_file(holdfast: Holdfast, tmp_path: Path) -> None:
    found = holdfast("scan", tmp_path / "gone.pt")
    assert found.code == 4
    assert "no such file" in found.err
