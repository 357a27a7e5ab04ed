"""Checkpoints whose every digest is right and whose content lies: one error of ours, no other, nothing run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.cli.main import main
from holdfast.errors import FormatError, HoldfastError
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.manifest import FileRecord, encode, read_manifest
from holdfast.runs.verify import verify
from holdfast.storage.digest import digest_bytes
from tests.runs.hand_made import commit


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes one of the small files and makes every digest right again."""
    content = change(json.loads((folder / name).read_text()))
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(data)
    manifest = read_manifest(str(folder))
    files = {**manifest.files, name: FileRecord(len(data), digest_bytes(data))}
    (folder / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, files=files)))


def tree(value: Any) -> Callable[[Any], Any]:
    return lambda content: {**content, "tree": value}


def deep(levels: int) -> bytes:
    return b'{"version":0,"tree":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"


REFUSED = {
    "tensor past the entries": tree({"w": {"$tensor": 10**6}}),
    "tensor that is no number": tree({"w": {"$tensor": {"a": 1}}}),
    "nested past the limit": lambda _: deep(600),
    "nested past what a decoder survives": lambda _: deep(200_000),
    "bytes that are no base64": tree({"w": {"$bytes": "%"}}),
    "a float that is none": tree({"w": {"$float": "1e999"}}),
    "an integer that is none": tree({"w": {"$int": "ff ff"}}),
    "a dict that is a number": tree({"a": {"$dict": 3}}),
    "a namespace that is a list": tree({"a": {"$namespace": [1]}}),
    "a state_dict that is a list": tree({"a": {"$state_dict": []}}),
    "pairs that are none": tree({"a": {"$dict": [[1, 2, 3]]}}),
    "not JSON": lambda _: b"\x00\xff",
    "not UTF-8": lambda _: b'{"version":0,"tree":"\xff"}',
    "no tree": lambda content: {"version": content["version"]},
}


@pytest.mark.parametrize("lie", sorted(REFUSED))
def test_a_state_that_lies_is_refused(root: Path, lie: str) -> None:
    folder = commit(root, 1)
    rewrite(folder, "state.json", REFUSED[lie])
    with open_checkpoint(folder) as opened, pytest.raises(FormatError) as caught:
        opened.document()
    assert "state.json" in str(caught.value)
    assert verify(folder).status == "CORRUPT"


ODD = {
    "a kind that nobody knows": tree({"a": {"$holdfast.errors.RunLocked": ["rm"]}}),
    "an opaque object": tree({"a": {"$opaque": ["os.system", ["touch owned"], None]}}),
    "keys that move the cursor": tree({"\x1b[2J": {"\u202e": 1}}),
    "one tensor a thousand times": tree([{"$tensor": 0}] * 1000),
    "no tensor": tree(None),
}


@pytest.mark.parametrize("lie", sorted(ODD))
def test_an_odd_state_can_be_inspected(root: Path, lie: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = commit(root, 1)
    rewrite(folder, "state.json", ODD[lie])
    for arguments in (
        ["inspect", str(folder)],
        ["inspect", str(folder), "--json"],
        ["inspect", str(folder), "--state"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert "\x1b" not in capsys.readouterr().out


def test_an_opaque_object_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = commit(root, 1)
    rewrite(folder, "state.json", ODD["an opaque object"])
    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    out = capsys.readouterr().out
    assert "holds objects of classes that only a pickle would rebuild: os.system" in out
    assert "safe:" not in out


def test_entries_of_another_file_are_refused(root: Path) -> None:
    folder = commit(root, 1)
    for change in (
        {"offset": 10**15},
        {"length": 10**15, "spec": {"dtype": "uint8", "shape": [10**15]}, "chunks": ["0" * 32]},
        {"file": "manifest.json"},
        {"file": "../../../etc/passwd"},
    ):
        good = (folder / "entries.json").read_bytes()

        def changed(content: Any, change: dict[str, Any] = change) -> Any:
            content["entries"][-1].update(change)
            return content

        rewrite(folder, "entries.json", changed)
        with pytest.raises(HoldfastError, match=r"entries\.json"):
            open_checkpoint(folder)
        assert verify(folder).status == "CORRUPT"
        rewrite(folder, "entries.json", lambda _, good=good: good)
    assert verify(folder).status == "OK"


def test_entries_in_the_state_file_are_no_tensors(root: Path) -> None:
    """A file that is no container may not be one: its bytes would be covered by another digest."""
    folder = commit(root, 1)

    def changed(content: Any) -> Any:
        entry = content["entries"][-1]
        entry.update({"file": "state.json", "offset": 0, "length": 4, "spec": {"dtype": "uint8", "shape": [4]}})
        return content

    rewrite(folder, "entries.json", changed)
    with pytest.raises(FormatError, match=r"state\.json', which the manifest does not list as a container"):
        open_checkpoint(folder)
