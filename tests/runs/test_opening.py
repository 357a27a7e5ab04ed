from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from holdfast.errors import ArgumentError, NotFound, StorageError, UnknownFormat
from holdfast.runs.layout import step_name
from holdfast.runs.opening import open_any
from tests.runs.hand_made import commit


@pytest.fixture
def run(root: Path) -> Path:
    """Two checkpoints."""
    commit(root, 1)
    commit(root, 2)
    return root


def keys(f: object) -> list[str]:
    with open_any(f) as container:
        return list(container.document().tree)


def test_a_run_means_its_last_checkpoint(run: Path) -> None:
    with open_any(run) as container:
        assert container.format == "run-checkpoint"
        assert container.file == str(run / step_name(2))


def test_a_checkpoint_and_a_copy_of_one(run: Path, tmp_path: Path) -> None:
    assert keys(run / step_name(1)) == ["model", "optimizer", "args"]
    shutil.copytree(run / step_name(1), tmp_path / "copy")
    assert keys(str(tmp_path / "copy")) == ["model", "optimizer", "args"]
    assert keys(os.fsencode(tmp_path / "copy")) == ["model", "optimizer", "args"]


def test_a_reference(run: Path) -> None:
    with open_any(f"{run}@step=1") as container:
        assert container.file == str(run / step_name(1))
    with pytest.raises(NotFound, match="has no step 9; its steps: 1, 2"):
        open_any(f"{run}@step=9")


def test_files_and_streams(run: Path) -> None:
    file = run / step_name(1) / "model.safetensors"
    assert sorted(keys(file)) == ["embed.weight", "head.bias"]
    with file.open("rb") as stream:
        assert sorted(keys(stream)) == ["embed.weight", "head.bias"]
    memory = io.BytesIO(b"before" + file.read_bytes())
    memory.seek(6)
    assert sorted(keys(memory)) == ["embed.weight", "head.bias"]
    memory.write(b"the caller's stream is still open and can still grow")


def test_a_folder_of_another_library(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(run / step_name(1) / "model.safetensors", folder)
    assert sorted(keys(folder)) == ["embed.weight", "head.bias"]


def test_a_foreign_folder_says_what_was_seen(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="It is empty; a run has step-"):
        open_any(tmp_path)
    for name in ["notes.txt", "evil\x1b[2J", *(f"z{count}" for count in range(20))]:
        (tmp_path / name).write_text("x")
    with pytest.raises(UnknownFormat, match=r"It has .*notes\.txt.* and 14 more; a run has step-") as caught:
        open_any(tmp_path)
    assert "\x1b" not in str(caught.value)


def test_nothing_there_names_what_is_near(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(NotFound, match=r"modl\.pt`: no such file or folder; near: .*model\.pt"):
        open_any(tmp_path / "modl.pt")
    with pytest.raises(NotFound, match="references are a run's folder and @last"):
        open_any(str(tmp_path / "gone@lst"))
    with pytest.raises(NotFound, match="no such run"):
        open_any(str(tmp_path / "gone@last"))
    with pytest.raises(NotFound, match=r"no such file or folder$"):
        open_any(tmp_path / "missing" / "folder" / "x.pt")


@pytest.mark.parametrize("f", [None, 3, ["a"], {"a": 1}])
def test_neither_path_nor_file(f: object) -> None:
    with pytest.raises(ArgumentError, match="a path or an open binary file is wanted, not"):
        open_any(f)


def test_a_text_stream(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="opened as text"):
        open_any(io.StringIO("x"))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="a FIFO, socket or device"):
        open_any(tmp_path / "pipe")


def test_what_safetensors_wrote_elsewhere(tmp_path: Path) -> None:
    import numpy

    safetensors.numpy.save_file({"w": numpy.zeros(3, "f4")}, tmp_path / "w.bin")
    assert keys(tmp_path / "w.bin") == ["w"]
