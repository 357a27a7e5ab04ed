"""Malicious whole-module pickles: everything that looks at them runs nothing of them."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.cli.main import main
from holdfast.errors import HoldfastError, RefusedFile


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.path), 0o700, True)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Path, Path]:
    """A file with a working module and a trap in it, and what is made when the trap is sprung."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.trap = Touch(tmp_path / "sprung")
    torch.save({"model": net, "epoch": Touch(tmp_path / "sprung")}, tmp_path / "trap.pt")
    return tmp_path / "trap.pt", tmp_path / "sprung"


def cli(*arguments: object) -> None:
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])


CALLS: dict[str, Callable[[Path], Any]] = {
    "rescue": holdfast.rescue,
    "restore": lambda f: holdfast.restore(f, model=nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "build": holdfast.build,
    "scan": holdfast.scan,
    "load": holdfast.load,
    "opaque": lambda f: holdfast.load(f, opaque=True),
    "trusted": lambda f: holdfast.load(f, trusted={"os.makedirs"}),
    "summary": holdfast.summary,
    "inspect": lambda f: cli("inspect", f),
    "inspect --opaque": lambda f: cli("inspect", f, "--opaque", "--state"),
    "scan verb": lambda f: cli("scan", f),
    "rescue verb": lambda f: cli("rescue", f, "-o", f.with_suffix(".out"), "--skeleton"),
    "verify": lambda f: cli("verify", f),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_is_run(trap: tuple[Path, Path], call: Callable[[Path], Any]) -> None:
    with contextlib.suppress(HoldfastError):
        call(trap[0])
    assert not trap[1].exists()


def test_the_trap_works(trap: tuple[Path, Path]) -> None:
    torch.load(trap[0], weights_only=False)
    assert trap[1].exists()


def test_the_weights_come_out_beside_the_trap(trap: tuple[Path, Path]) -> None:
    assert list(holdfast.rescue(trap[0])) == ["0.weight", "0.bias"]
    assert list(holdfast.build(trap[0]).state_dict()) == ["0.weight", "0.bias"]
    assert holdfast.scan(trap[0]).is_dangerous


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def module(children: bytes) -> bytes:
    """A module with nothing but children: a dict's items."""
    tables = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}(" + children + b"u"
    return b"cmy\nNet\n)\x81}(" + tables + b"ub"


def archive(data: bytes, path: Path) -> Path:
    torch.save({}, path)
    with torch.serialization._open_zipfile_writer(str(path)) as writer:
        writer.write_record("data.pkl", data, len(data))
    return path


def test_modules_that_multiply(tmp_path: Path) -> None:
    data = b"\x80\x02" + module(b"") + b"q\x000"
    for level in range(30):  # each holds the one before twice
        before = b"h" + bytes([level])
        data += module(text("a") + before + text("b") + before) + b"q" + bytes([level + 1]) + b"0"
    file = archive(data + b"h\x1e.", tmp_path / "bomb.pt")
    with pytest.raises(RefusedFile):
        holdfast.rescue(file)


def test_modules_nested_deep(tmp_path: Path) -> None:
    code = module(b"")
    for _ in range(200):
        code = module(text("a") + code)
    file = archive(b"\x80\x02" + code + b".", tmp_path / "deep.pt")
    with pytest.raises(RefusedFile, match="nested deeper"):
        holdfast.rescue(file)
    assert not holdfast.scan(file).is_dangerous


def test_a_module_inside_itself(tmp_path: Path) -> None:
    tables = text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}" + text("a") + b"h\x00s"
    file = archive(b"\x80\x02cmy\nNet\n)\x81q\x00}(" + tables + b"ub.", tmp_path / "loop.pt")
    with pytest.raises(RefusedFile, match=r"`a`: a my\.Net"):
        holdfast.rescue(file)


def test_a_bare_pickle_is_scanned_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"model": nn.Linear(1, 1), "x": Touch(tmp_path / "sprung")}))
    assert holdfast.scan(tmp_path / "bare.pkl").is_dangerous
    with pytest.raises(HoldfastError):
        holdfast.rescue(tmp_path / "bare.pkl")
    assert not (tmp_path / "sprung").exists()
