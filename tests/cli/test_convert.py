"""``holdfast convert``: what it prints, how it exits, and that it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.detect import open_path
from holdfast.formats.writing import write_document
from holdfast.spec import TensorSpec
from holdfast.storage.source import MemorySource


@pytest.fixture
def file(tmp_path: Path) -> Path:
    memory = Segment(MemorySource(b"abcdef"), 0, 6)
    leaf = StoredTensor(TensorSpec("uint8", (6,)), memory)
    tree = {"a": leaf, "tied\x1b[2J": StoredTensor(leaf.spec, memory), "epoch": 3}
    write_document(Document(tree), tmp_path / "a.pt", "pt")
    return tmp_path / "a.pt"


def test_what_is_printed(holdfast: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.safetensors"
    result = holdfast("convert", file, target, "--drop", "ep*")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{target}: safetensors, 2 tensors, ")
    assert lines[0].endswith(", read again and equal")
    assert lines[1:] == [
        "  dropped: epoch",
        "  shared memory: a = tied\\x1b[2J",
        "  notes: `tied\\x1b[2J` share the memory of `a`; plain readers find that name only",
    ]
    with open_path(target) as container:
        assert list(container.document().tree) == ["a", "tied\x1b[2J"]


def test_json(holdfast: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    result = holdfast(
        "convert", file, tmp_path / "b", "--format", "npz", "--drop", "epoch", "--drop", "tied*", "--json"
    )
    assert result.code == 0
    said = json.loads(result.out)
    assert said["format"] == "npz"
    assert said["tensors"] == 1
    assert said["dropped"] == ["tied\x1b[2J", "epoch"]
    assert said["bytes"] == (tmp_path / "b").stat().st_size


def test_long_lists_are_cut(holdfast: Callable[..., Any], tmp_path: Path) -> None:
    tree = {f"x{index:02}": index for index in range(30)}
    leaf = StoredTensor(TensorSpec("uint8", (1,)), Segment(MemorySource(b"a"), 0, 1))
    write_document(Document({**tree, "w": leaf}), tmp_path / "a.pt", "pt")
    out = holdfast("convert", tmp_path / "a.pt", tmp_path / "b.npz", "--drop", "x*").out.splitlines()
    assert out[20:] == ["  dropped: x19", "  dropped: ... 10 more: --json"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (
            ["b.npz"],
            2,
            "npz can't carry `tied\\x1b[2J`: a zip can't hold that name, `epoch`: a int. Nothing was written. ",
        ),
        (["b.npz", "--drop", "epoc"], 3, "drop 'epoc' matches nothing; there are: a, tied\\x1b[2J"),
        (["b.npz", "--format", "zip"], 3, "'zip' is not one of 'pt', 'safetensors', 'npz', 'torch-legacy'"),
        (["."], 3, "is not a file's name"),
    ],
)
def test_refusals(
    holdfast: Callable[..., Any],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(file.parent)
    result = holdfast("convert", file, *arguments)
    assert result.code == code
    assert reason in result.err
    assert result.err.startswith("holdfast: ")
    assert len(result.err.splitlines()) == 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.pt"]


def test_a_missing_file(holdfast: Callable[..., Any], tmp_path: Path) -> None:
    assert holdfast("convert", tmp_path / "no", tmp_path / "b").code == 4


def test_no_torch_is_loaded(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom holdfast.cli.main import main\n"
        f"try: main(['convert', {str(file)!r}, {str(tmp_path / 'b.npz')!r}, '--drop', 'epoch', '--drop', 'tied*'])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False False"


def test_shards(holdfast: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    result = holdfast("convert", file, tmp_path / "out", "--shards", "1")
    assert result.code == 0
    assert result.out.splitlines()[0].startswith(f"{tmp_path}/out: 1 safetensors file with an index, 2 tensors, ")
    assert holdfast("verify", tmp_path / "out").code == 0
    for given, said in (("0", "a number of files above 0 is wanted"), ("2", "2 shards of 1 tensors")):
        result = holdfast("convert", file, tmp_path / "out", "--shards", given)
        assert result.code == 3
        assert said in result.err
