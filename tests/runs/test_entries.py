from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.errors import CorruptFile, UnknownFormat
from holdfast.runs.entries import decode_entries, encode_entries
from holdfast.runs.manifest import FileRecord
from holdfast.spec import CHUNK, Entry, TensorSpec

HEX = "0" * 32
FILES = {"m.safetensors": FileRecord(1000, "xxh3-128:", 100), "big.safetensors": FileRecord(3 * CHUNK, "", 0)}


def stored(**changes: Any) -> dict[str, Any]:
    return {
        "path": ["model", "w"], "spec": {"dtype": "float32", "shape": [2, 3]}, "file": "m.safetensors", "name": "w",
        "offset": 100, "length": 24, "chunks": [HEX], **changes,
    }  # fmt: skip


def alias(**changes: Any) -> dict[str, Any]:
    return {**stored(path=["model", "tied"], alias_of=["model", "w"], chunks=[]), **changes}


def decoded(*entries: dict[str, Any], **changes: Any) -> list[Entry]:
    content = {"version": 0, "algorithm": "xxh3-128", "chunk_size": CHUNK, "entries": list(entries), **changes}
    return decode_entries(json.dumps(content).encode(), FILES, "a/entries.json")


def test_round_trip() -> None:
    entries = [
        Entry(("model", "w"), TensorSpec("float32", (2, 3)), "m.safetensors", "w", 100, 24, (HEX,), requires_grad=True),
        Entry(
            ("model", "t"), TensorSpec("float32", (2,), (3,)), "m.safetensors", "w", 104, 16, alias_of=("model", "w")
        ),
        Entry(("o", 0), TensorSpec("float32", (2, 3)), "m.safetensors", "x", 124, 24, (HEX,), live_stride=(1, 2)),
        Entry(("o", "0"), TensorSpec("bool", ()), "m.safetensors", "y", 148, 1, (HEX,)),
        Entry(("o", True), TensorSpec("bool", (0,)), "m.safetensors", "z", 149, 0),
        Entry(("o", 1), TensorSpec("bool", (0,)), "m.safetensors", "z~2", 149, 0),
        Entry(("o", 1.0), TensorSpec("bool", (0,)), "m.safetensors", "z~3", 149, 0),
        Entry(("o", None), TensorSpec("bool", (0,)), "m.safetensors", "z~4", 149, 0),
    ]
    back = decode_entries(encode_entries(entries), FILES, "entries.json")
    assert back == entries
    assert [type(entry.path[-1]) for entry in back] == [str, str, int, str, bool, int, float, type(None)]


def test_sha256_is_accepted_and_named() -> None:
    (entry,) = decoded(stored(chunks=["1" * 64]), algorithm="sha256")
    assert entry.chunks == ("sha256:" + "1" * 64,)


def test_chunks_are_counted() -> None:
    spec = {"dtype": "uint8", "shape": [2 * CHUNK + 1]}
    big = stored(spec=spec, file="big.safetensors", offset=0, length=2 * CHUNK + 1, chunks=[HEX] * 3)
    assert len(decoded(big)[0].chunks) == 3
    with pytest.raises(CorruptFile, match=r"`model\.w`: has 2 chunk digests, 16,777,217 bytes need 3"):
        decoded({**big, "chunks": [HEX] * 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "other.safetensors"}, "the manifest does not list"),
        ({"file": "../m.safetensors"}, "the manifest does not list"),
        ({"offset": -1}, "are not inside m.safetensors of 1,000 bytes"),
        ({"offset": 977}, "are not inside m.safetensors of 1,000 bytes"),
        ({"length": -24}, "24"),
        ({"length": 23}, r"\(2, 3\) float32 takes 24 bytes, 23 are recorded"),
        ({"spec": {"dtype": "float33", "shape": [6]}}, "float33"),
        ({"spec": {"dtype": "float32", "shape": [-2, -3]}}, "-2"),
        ({"spec": {"dtype": "float32", "shape": [1] * 65}}, "65 dimensions"),
        ({"spec": {"dtype": "float32", "shape": [2**40, 2**40]}}, "more elements than 64 bits"),
        ({"spec": {"dtype": "float32", "shape": [0, 2**62, 2**62]}, "length": 0, "chunks": []}, "too large for any"),
        ({"spec": {"dtype": "float32", "shape": [2, 3], "stride": [1, 2]}}, "only aliases may have one"),
        ({"spec": {"dtype": "float32", "shape": [2, 3], "stride": [3]}}, "2 sizes but 1 strides"),
        ({"spec": {"dtype": "float32", "shape": [2, 3], "stride": [-3, 1]}}, "not all integers of at least 0"),
        ({"live_stride": [2**40, 1]}, "reaches past the 6 elements"),
        ({"live_stride": [1]}, "2 sizes but 1 strides"),
        ({"chunks": []}, "0 chunk digests, 24 bytes need 1"),
        ({"chunks": ["zz" * 16]}, "no hex number of the right length"),
        ({"chunks": [HEX * 2]}, "no hex number of the right length"),
        ({"path": "model.w"}, "is damaged"),
        ({"path": [["w"]]}, "is damaged"),
        ({"requires_grad": 1}, "is damaged"),
    ],
)
def test_a_stored_entry_that_lies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message) as caught:
        decoded(stored(**changes))
    assert "entries.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alias_of": ["model", "gone"]}, "is an alias of `model.gone`, which stores no bytes"),
        ({"alias_of": ["model", "tied"]}, "which stores no bytes here"),
        ({"offset": 96}, "lies outside its bytes"),
        ({"file": "big.safetensors"}, "lies outside its bytes"),
        ({"offset": 104}, "reaches past its bytes"),
        ({"spec": {"dtype": "float32", "shape": [2, 3], "stride": [100, 1]}, "length": 412}, "reaches past its bytes"),
        ({"spec": {"dtype": "float32", "shape": [2, 3], "stride": [100, 1]}}, "takes 412 bytes, 24 are recorded"),
        ({"chunks": [HEX]}, "has digests of its own"),
    ],
)
def test_an_alias_that_lies(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        decoded(stored(), alias(**changes))


def test_a_path_that_stands_twice() -> None:
    with pytest.raises(CorruptFile, match=r"`model\.w`: stands twice"):
        decoded(stored(), stored(name="other"))


def test_names_are_escaped_in_messages() -> None:
    with pytest.raises(CorruptFile) as caught:
        decoded(stored(path=["\x1b[2J\u202e"], file="gone\x1b[2J"))
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"algorithm": "md5"}, {"chunk_size": 1}, {"chunk_size": 0}])
def test_digests_that_are_not_known(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile, match="are not known; xxh3-128 and sha256 of 8388608 bytes are"):
        decoded(stored(), **changes)


def test_a_newer_version() -> None:
    with pytest.raises(UnknownFormat, match="format version 1"):
        decoded(version=1)
