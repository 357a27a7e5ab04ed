"""A run whose newest checkpoint is damaged in any of its parts goes on from the one before, exactly, and says so."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import holdfast
from holdfast.errors import CorruptFile, StorageError, UnknownFormat
from holdfast.runs.catalog import read_reason, scan
from holdfast.runs.manifest import read_manifest
from holdfast.storage.digest import digest_bytes

GOOD, NEWEST = 3, 6
FILES = ("model", "optimizer", "rng", "loader", "entries", "state", "manifest")


def objects(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": net,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "loader": DataLoader(range(20), batch_size=2, shuffle=True, generator=generator),
    }


def train(run: holdfast.Run, parts: dict[str, Any], last: int) -> None:
    for _ in run.epochs(1):
        for batch in run.batches(parts["loader"]):
            parts["optimizer"].zero_grad()
            parts["model"](torch.stack([batch, batch], 1).float()).square().sum().backward()
            parts["optimizer"].step()
            if run.position.step + 1 == last:
                run.save()
                return


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints in the middle of an epoch."""
    root = tmp_path_factory.mktemp("falling") / "run"
    parts = objects(1)
    with holdfast.Run(root, save="3step", **parts) as run:
        train(run, parts, NEWEST)
    assert [one.step for one in scan(root).checkpoints] == [GOOD, NEWEST]
    return root


@pytest.fixture
def root(two_steps: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def resumed(root: Path) -> tuple[int, dict[str, Any]]:
    """The step that a fresh program goes on from, and all that it has then: weights, moments, draws, next items."""
    parts = objects(7)
    with holdfast.Run(root, save="100ep", **parts) as run:
        position = run.resume()
        assert position is not None
        drawn = torch.rand(3)
        items = torch.cat(list(run.batches(parts["loader"])))
        moments = [value for state in parts["optimizer"].state.values() for value in state.values()]
        scheduler = parts["scheduler"].state_dict()
        return position.step, {
            "weights": [*parts["model"].state_dict().values(), *moments],
            "drawn": [drawn, items],
            "scheduler": scheduler["last_epoch"],
        }


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    pairs = [(a, b) for name in ("weights", "drawn") for a, b in zip(left[name], right[name], strict=True)]
    return left["scheduler"] == right["scheduler"] and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def undamaged(two_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What a resume gives from either checkpoint."""
    found = {}
    for step in (NEWEST, GOOD):
        copy = tmp_path_factory.mktemp("undamaged") / "run"
        shutil.copytree(two_steps, copy)
        if step == GOOD:
            shutil.rmtree(copy / f"step-{NEWEST:08d}")
        at, found[step] = resumed(copy)
        assert at == step
    assert not same(found[GOOD], found[NEWEST])
    return found


def path_of(root: Path, part: str) -> Path:
    (found,) = (root / f"step-{NEWEST:08d}").glob(f"{part}.*")
    return found


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << (at % 8)
    file.chmod(0o644)
    file.write_bytes(data)


def first_checked(file: Path) -> int:
    """Where the bytes begin whose damage a resume must notice: behind a container's header, which it does not use."""
    record = read_manifest(str(file.parent)).files.get(file.name)
    return record.head if record is not None and record.head is not None else 0


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": lambda file: flip(file, first_checked(file)),
    "middle byte": lambda file: flip(file, (first_checked(file) + file.stat().st_size) // 2),
    "last byte": lambda file: flip(file, file.stat().st_size - 2 if file.suffix == ".json" else -1),
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_each_part_damaged_in_each_way_makes_the_run_fall_back(
    part: str, damage: str, root: Path, undamaged: dict[int, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[damage](path_of(root, part))
    with caplog.at_level(logging.WARNING, "holdfast"):
        step, found = resumed(root)
    assert step == GOOD
    assert same(found, undamaged[GOOD])
    aside, instead = (one.getMessage() for one in caplog.records if one.levelno == logging.WARNING)
    reason = read_reason(root, f"step-{NEWEST:08d}")
    assert aside == f"run {root}: step 6 is damaged and was set aside in quarantine/: {reason}"
    assert instead == (
        f"run {root}: goes on from step 3, the newest good checkpoint, instead of step 6; the rest is trained again"
    )
    assert [one.step for one in scan(root).checkpoints] == [GOOD]


def test_a_damaged_header_gives_the_same_bits_or_falls_back(root: Path, undamaged: dict[int, dict[str, Any]]) -> None:
    """Where a tensor lies is read from entries.json; the header is for others, and holdfast verify checks it."""
    file = path_of(root, "model")
    flip(file, 20)
    assert holdfast.verify(file.parent).status == "CORRUPT"
    step, found = resumed(root)
    assert same(found, undamaged[step])


def test_several_damaged_ones_are_passed_over_in_one_go(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (7, 8):
        shutil.copytree(root / f"step-{NEWEST:08d}", root / f"step-{step:08d}")  # each says that it is step 6
    flip(path_of(root, "rng"), -1)
    with caplog.at_level(logging.WARNING, "holdfast"):
        step, _ = resumed(root)
    assert step == GOOD
    assert "its manifest says step 6: the folder was renamed or copied" in read_reason(root, "step-00000008")
    assert "goes on from step 3, the newest good checkpoint, instead of step 8, 7, 6;" in caplog.text


def test_no_word_when_nothing_is_damaged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "holdfast"):
        assert resumed(root)[0] == NEWEST
    assert caplog.text == ""


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_a_disk_that_can_not_be_read_is_no_damage(file: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To set the newest aside for a failing cable would throw good work away: it is said, and nothing moves."""
    broken = os.stat(root / f"step-{NEWEST:08d}" / file).st_ino
    real = os.preadv

    def read(fd: int, buffers: Any, offset: int, *more: int) -> int:
        if os.fstat(fd).st_ino == broken:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, *more)

    monkeypatch.setattr("os.preadv", read)
    with pytest.raises(StorageError, match=f"{file}`: .*Input/output error"):
        resumed(root)
    assert [one.step for one in scan(root).checkpoints] == [GOOD, NEWEST]
    monkeypatch.undo()
    assert resumed(root)[0] == NEWEST


def test_one_of_a_newer_holdfast_is_no_damage(root: Path) -> None:
    file = path_of(root, "manifest")
    fields = {**json.loads(file.read_text()), "version": 9, "digest": ""}
    body = json.dumps(fields).encode()
    file.write_bytes(body[:-3] + b'"' + digest_bytes(body).encode() + b'"}')
    with pytest.raises(UnknownFormat, match="has format version 9, this holdfast reads version 0"):
        resumed(root)
    assert [one.step for one in scan(root).checkpoints] == [GOOD, NEWEST]
    flip(file, file.read_bytes().index(b"9"))  # but a version that was damaged is damage
    assert resumed(root)[0] == GOOD


def test_what_is_set_aside_leaves_a_run_that_stops_and_says_where_it_is(root: Path) -> None:
    for part in ("model", "manifest"):
        flip(path_of(root, part), -2)
    flip(root / f"step-{GOOD:08d}" / "rng.safetensors", -1)
    for _ in range(2):
        with pytest.raises(CorruptFile, match="every checkpoint is damaged; they are in quarantine/ with their reason"):
            resumed(root)
    assert scan(root).quarantined == (f"step-{GOOD:08d}", f"step-{NEWEST:08d}")
