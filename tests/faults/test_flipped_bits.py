"""One bit of any byte flips, or a file ends anywhere: it is noticed, the tensor or file is named, a run falls back."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.errors import FormatError, HoldfastError, NotFound
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.verify import verify
from holdfast.state.paths import dotted
from tests.faults.scenarios import copied, fill, put, same, state

pytestmark = pytest.mark.usefixtures("small_files_are_linked")

Damage = Iterator[tuple[Path, int, bytes]]
"""The file, the first byte concerned, and what is in the file now."""


def written(file: Path, data: bytes) -> None:
    """Replaces a file by a damaged one; other names of it stay whole."""
    file.unlink()
    file.write_bytes(data)


def flips(files: list[Path], every: int = 1) -> Damage:
    """Each byte of each file with one bit flipped, or every ``every``-th byte."""
    chance = random.Random(5)
    for file in files:
        data = file.read_bytes()
        for at in range(chance.randrange(every), len(data), every):
            changed = bytearray(data)
            changed[at] ^= 1 << chance.randrange(8)
            written(file, bytes(changed))
            yield file, at, bytes(changed)
        written(file, data)


def cuts(files: list[Path], every: int = 1) -> Damage:
    """Each file cut at each length, and longer by one byte."""
    for file in files:
        data = file.read_bytes()
        for length in (*range(0, len(data), every), len(data) + 1):
            written(file, (data + b"\0")[:length])
            yield file, length, data[:length]
        written(file, data)


def tensors_of(folder: Path) -> dict[str, list[tuple[int, int, str]]]:
    """For each container the first byte, the end and the name of each tensor in it."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    with open_checkpoint(folder) as checkpoint:
        for entry in checkpoint.entries:
            if entry.alias_of is None and entry.length:
                place = (entry.offset, entry.offset + entry.length, dotted(entry.path))
                found.setdefault(entry.file, []).append(place)
    return found


def unnoticed(folder: Path, damage: Damage, *, flipped: bool, load_every: int = 1) -> tuple[int, list[str]]:
    """How much was tried, and what verify and load did not notice or did not place where it is."""
    places = tensors_of(folder)
    tried, wrong = 0, []
    for file, at, _ in damage:
        tried += 1
        tensor = next((name for start, end, name in places.get(file.name, []) if start <= at < end), None)
        findings = [item for found in verify(folder).items for item in found.findings]
        if not any(one.file.endswith(file.name) for one in findings):
            wrong.append(f"{file.name} at {at}: verify says {findings}")
        if flipped and tensor and [one.name for one in findings] != [tensor]:
            wrong.append(f"{file.name} at {at}, in {tensor}: verify says {findings}")
        if tried % load_every:
            continue
        try:
            holdfast.load(folder)
            wrong.append(f"{file.name} at {at}: load says nothing")
        except (FormatError, NotFound) as reason:
            if file.name not in str(reason) or (flipped and tensor and reason.path != tensor):
                wrong.append(f"{file.name} at {at}: load says {reason}")
    return tried, wrong


@pytest.fixture
def folder(memory_disk: Path) -> Path:
    """The newer one of two checkpoints of a run."""
    fill(memory_disk, 1, 2)
    return memory_disk / "run" / "step-00000002"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_a_flipped_bit_of_a_checkpoint_is_noticed_and_located(folder: Path) -> None:
    tried, wrong = unnoticed(folder, flips(files_in(folder)), flipped=True, load_every=8)
    assert wrong == []
    assert tried > 5000


def test_a_checkpoint_that_was_cut_is_noticed(folder: Path) -> None:
    tried, wrong = unnoticed(folder, cuts(files_in(folder), 9), flipped=False, load_every=2)
    assert wrong == []
    assert tried > 500


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_byte_of_a_checkpoint_and_every_length(folder: Path, counted: Callable[[str], None]) -> None:
    """With the random states, as a run has them."""
    with holdfast.Run(folder.parent, **put(3)) as run:
        run.resume()
        run.save(step=3)
    newest = folder.with_name("step-00000003")
    bits, wrong = unnoticed(newest, flips(files_in(newest)), flipped=True)
    assert wrong == []
    lengths, wrong = unnoticed(newest, cuts(files_in(newest)), flipped=False)
    assert wrong == []
    counted(f"a checkpoint: {bits:,} flipped bits and {lengths:,} lengths, all noticed, by verify and by load")


def falls_back(folder: Path, damage: Damage, caplog: pytest.LogCaptureFixture) -> int:
    """A training that is started again goes on from the checkpoint before, and says so."""
    tried = 0
    for file, at, _ in damage:
        with caplog.at_level(logging.WARNING, "holdfast"), holdfast.Run(folder.parent, **put(0), rng=False) as run:
            position = run.resume()
        assert position is not None, (file.name, at)
        assert position.step == 1, (file.name, at)
        assert same(copied(), state(1)), (file.name, at)
        assert "step 2 is damaged and was set aside in quarantine/" in caplog.text, (file.name, at)
        caplog.clear()
        shutil.move(folder.parent / "quarantine" / folder.name, folder)
        (folder / "reason.json").unlink()
        tried += 1
    return tried


def test_a_run_falls_back_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert falls_back(folder, flips(files_in(folder), 150), caplog) > 30
    assert falls_back(folder, cuts(files_in(folder), 400), caplog) > 10


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_falls_back_from_every_flipped_byte(
    folder: Path, caplog: pytest.LogCaptureFixture, counted: Callable[[str], None]
) -> None:
    tried = falls_back(folder, flips(files_in(folder), 2), caplog)
    counted(f"a run with a damaged newest checkpoint: {tried:,} fell back to the one before")


# ---- single files ---------------------------------------------------------------------------------------------------


def read_or_said(file: Path) -> tuple[Any, bool]:
    """What a file holds now, None when load refuses it; and whether verify finds it whole."""
    tree: Any = None
    try:
        tree = holdfast.load(file)
    except FormatError:
        tree = None
    try:
        return tree, not verify(file).findings
    except HoldfastError:
        return tree, False


def effects(file: Path, wanted: Any, damage: Damage) -> tuple[int, int, int]:
    """(tried, noticed by verify, without any effect on load); what changes a value is never unnoticed by either."""
    tried = noticed = harmless = 0
    for _, at, _ in damage:
        tried += 1
        tree, whole = read_or_said(file)
        noticed += not whole
        harmless += tree is not None and same(tree, wanted)
        assert tree is not None or not whole, at  # what can't be read is not called whole
        assert tree is None or same(tree, wanted), at
    return tried, noticed, harmless


@pytest.mark.parametrize(("name", "every"), [("a.safetensors", 2), ("a.pt", 4)])
def test_every_flipped_bit_of_a_file_of_ours_is_noticed(name: str, every: int, memory_disk: Path) -> None:
    file = memory_disk / name
    holdfast.save(state(1), file)
    tried, noticed, _ = effects(file, state(1), flips([file], every))
    assert noticed == tried > 1000
    tried, noticed, _ = effects(file, state(1), cuts([file], 11 * every))
    assert noticed == tried > 150


def test_no_flipped_bit_of_a_torch_file_changes_a_value(memory_disk: Path) -> None:
    """What is not noticed lies in padding, dates and attributes, and changes nothing."""
    file = memory_disk / "a.pt"
    torch.save(state(1), file)
    tried, noticed, harmless = effects(file, state(1), flips([file], 12))
    assert noticed + harmless >= tried > 300
    tried, noticed, harmless = effects(file, state(1), cuts([file], 50))
    assert noticed >= tried - 1 > 50  # a byte behind the end


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["ours.pt", "torch.pt", "ours.safetensors"])
def test_every_byte_and_every_length_of_a_file(name: str, memory_disk: Path, counted: Callable[[str], None]) -> None:
    file = memory_disk / name
    if name.startswith("torch"):
        torch.save(state(1), file)
    else:
        holdfast.save(state(1), file)
    bits, noticed, harmless = effects(file, state(1), flips([file]))
    lengths, seen, _ = effects(file, state(1), cuts([file]))
    if name.startswith("torch"):
        assert noticed + harmless >= bits
        assert seen >= lengths - 1  # a byte behind the end
    else:
        assert (noticed, seen) == (bits, lengths)
    counted(
        f"{name}: {noticed:,} of {bits:,} flipped bits and {seen:,} of {lengths:,} lengths noticed by verify; "
        f"{harmless:,} flipped bits change nothing"
    )
