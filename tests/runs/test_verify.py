from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from holdfast.errors import NotFound, StorageError, UnknownFormat
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.layout import step_name
from holdfast.runs.manifest import encode
from holdfast.runs.opening import open_any
from holdfast.runs.verify import refuse_damage, verify
from holdfast.spec import CHUNK
from tests.runs.hand_made import commit, facts, flip, tensor


def test_a_whole_checkpoint(root: Path) -> None:
    folder = commit(root, 1)
    report = verify(folder)
    assert report.status == "OK"
    assert report.findings == ()
    files = sum(item.stat().st_size for item in folder.iterdir() if item.name != "manifest.json")
    assert report.items[0].checked == files
    assert report.items[0].unchecked == 0
    assert str(report) == f"{folder}: OK"


def test_what_reads_back_otherwise_is_said_to_be_the_disk(root: Path) -> None:
    folder = commit(root, 1)
    refuse_damage(str(folder))
    flip(folder / "model.safetensors", 200)
    message = r"model\.safetensors`: read back after writing, .* is not what was written: .*memory is failing"
    with pytest.raises(StorageError, match=message):
        refuse_damage(str(folder))


def test_every_flipped_byte_of_every_file_is_found_and_named(root: Path) -> None:
    folder = commit(root, 1)
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        end = len(good) - (3 if file.name == "manifest.json" else 0)
        for at in range(0, end, 5):
            flip(file, at, at % 8)
            report = verify(folder)
            assert report.status == "CORRUPT", (file.name, at)
            assert {Path(one.file).name for one in report.findings} == {file.name}
            file.write_bytes(good)
    assert verify(folder).status == "OK"


def test_damage_is_located_to_the_tensor_and_the_chunk(root: Path) -> None:
    big = tensor(CHUNK + 100, dtype="uint8")
    folder = commit(root, 1, {"model": {"small": tensor(10), "big": big}})
    with open_checkpoint(folder) as opened:
        entries = {entry.path[-1]: entry for entry in opened.entries}
    flip(folder / "model.safetensors", entries["big"].offset + CHUNK + 7)
    (finding,) = verify(folder).findings
    assert finding.name == "model.big"
    assert finding.file == str(folder / "model.safetensors")
    assert finding.offset == entries["big"].offset + CHUNK
    assert finding.length == 100
    assert finding.expected
    assert finding.found
    assert finding.expected != finding.found
    assert f"bytes {finding.offset:,} to {finding.offset + 100:,}: expected" in finding.problem


def test_tied_weights_are_read_once(root: Path) -> None:
    folder = commit(root, 1)
    with open_checkpoint(folder) as opened:
        flip(folder / "model.safetensors", opened.entries[0].offset)
    assert [one.name for one in verify(folder).findings] == ["model.embed.weight"]


def test_a_truncated_or_missing_file_does_not_hide_the_rest(root: Path) -> None:
    folder = commit(root, 1)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    (folder / "optimizer.safetensors").unlink()
    (folder / "state.json").write_text("{}")
    names = [(Path(one.file).name, one.name) for one in verify(folder).findings]
    assert ("model.safetensors", "model.safetensors") in names
    assert ("model.safetensors", "model.head.bias") in names
    assert ("model.safetensors", "model.embed.weight") not in names
    assert ("optimizer.safetensors", "optimizer.safetensors") in names
    assert ("state.json", "state.json") in names


def test_a_container_that_became_a_folder_or_a_link(root: Path, tmp_path: Path) -> None:
    folder = commit(root, 1)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "link out of its folder" in verify(folder).findings[0].problem


def test_a_run_is_all_its_steps(root: Path) -> None:
    seen: list[str] = []
    for step in (1, 2, 3):
        commit(root, step)
    flip(root / step_name(2) / "entries.json", 50)
    flip(root / step_name(3) / "manifest.json", 50)
    report = verify(root, progress=seen.append)
    assert [(item.step, item.status) for item in report.items] == [(1, "OK"), (2, "CORRUPT"), (3, "CORRUPT")]
    assert report.status == "CORRUPT"
    assert seen == [str(root / step_name(step)) for step in (1, 2, 3)]
    assert verify(f"{root}@step=1").status == "OK"


def test_a_renamed_step_is_said(root: Path) -> None:
    commit(root, 1).rename(root / step_name(2))
    assert "says step 1: the folder was renamed or copied" in verify(root).findings[0].problem
    assert verify(root / step_name(2)).status == "OK"


def test_a_file_without_digests_is_not_verifiable(root: Path, tmp_path: Path) -> None:
    shutil.copy(commit(root, 1) / "model.safetensors", tmp_path / "model.safetensors")
    report = verify(tmp_path / "model.safetensors")
    assert report.status == "NOT VERIFIABLE"
    assert report.items[0].unchecked == 64
    data = (tmp_path / "model.safetensors").read_bytes()
    assert verify(io.BytesIO(data)).status == "NOT VERIFIABLE"
    (tmp_path / "model.safetensors").write_bytes(data[:-1])
    report = verify(tmp_path / "model.safetensors")
    assert report.status == "CORRUPT"
    assert "cut short" in report.findings[0].problem


def test_an_open_container(root: Path) -> None:
    folder = commit(root, 1)
    with open_any(folder) as container:
        assert verify(container).status == "OK"
        flip(folder / "state.json", 20)
        assert verify(container).status == "CORRUPT"
    with open_any(folder / "model.safetensors") as container:
        assert verify(container).status == "NOT VERIFIABLE"


def test_a_manifest_that_lists_no_entries(root: Path) -> None:
    folder = commit(root, 1)
    (folder / "manifest.json").write_bytes(encode(facts(1)))
    assert [one.problem for one in verify(folder).findings] == ["is not listed in the manifest"] * 2


def test_names_are_escaped_in_the_report(root: Path) -> None:
    folder = commit(root, 1, {"model": {"evil\x1b[2J": tensor(3)}})
    file = folder / "model.safetensors"
    flip(file, len(file.read_bytes()) - 1)
    report = verify(folder)
    assert report.status == "CORRUPT"
    assert "\x1b" not in str(report)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        verify(tmp_path / "gone")
    (tmp_path / "page").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(UnknownFormat, match="page"):
        verify(tmp_path / "page")
