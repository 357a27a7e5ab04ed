from __future__ import annotations

import datetime
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ArgumentError, CorruptFile, HoldfastError, NotFound, RefusedFile, UnknownFormat
from holdfast.runs import manifest as room
from holdfast.runs.manifest import FileRecord, Manifest, decode, encode, read_manifest
from holdfast.storage.digest import digest_bytes

NOON = datetime.datetime(2025, 1, 1, 12, tzinfo=datetime.UTC)
FULL = Manifest(
    run="abc",
    step=1000,
    time=NOON,
    epoch=3,
    batch=17,
    metrics={"loss": 0.25, "nan": math.nan, "low": -math.inf, "none": None, "zero": 0.0},
    files={"model.safetensors": FileRecord(100, "xxh3-128:00", 64), "state.json": FileRecord(5, "xxh3-128:11")},
    objects={"model": {"kind": "module", "config": {"width": 64, "eps": math.inf, "ids": [1, 2]}}},
    environment={"torch": "2.13.0", "world_size": 1},
    metadata={"note": 'ends with "digest": ""}'},
)


def signed(content: dict[str, Any]) -> bytes:
    """A manifest with a right digest, whatever it says."""
    body = json.dumps({**content, "digest": ""}).encode()
    start = body.rindex(b'""')
    return body[: start + 1] + digest_bytes(body).encode() + body[start + 1 :]


def plain(**changes: Any) -> dict[str, Any]:
    content = json.loads(encode(Manifest(run="abc", step=1, time=NOON)))
    del content["digest"]
    return {**content, **changes}


def test_round_trip() -> None:
    back = decode(encode(FULL), "manifest.json")
    assert math.isnan(back.metrics["nan"] or 0)
    assert back.metrics["low"] == -math.inf
    assert back.metrics["zero"] == 0.0
    assert back.metrics["none"] is None
    same = {**FULL.metrics, "nan": 1.0}
    assert msgspec.structs.replace(back, metrics=same) == msgspec.structs.replace(FULL, metrics=same)


def test_it_is_legal_json_with_utc_time_and_lines_for_people() -> None:
    paris = datetime.timezone(datetime.timedelta(hours=2))
    content = encode(msgspec.structs.replace(FULL, time=NOON.astimezone(paris)))
    assert json.loads(content, parse_constant=lambda _: pytest.fail("NaN is no JSON"))["time"] == "2025-01-01T12:00:00Z"
    assert content.count(b"\n") > 10


@given(st.integers(0, len(encode(FULL)) - 1), st.integers(0, 7))
def test_every_flipped_bit_is_noticed(at: int, bit: int) -> None:
    data = bytearray(encode(FULL))
    data[at] ^= 1 << bit
    try:
        back = decode(bytes(data), "manifest.json")
    except HoldfastError:
        return
    # whitespace after the digest's quote is the only thing that no reader sees
    assert back.metrics["loss"] == 0.25
    assert back.objects == FULL.objects
    assert at > len(data) - 4


@given(st.integers(0, len(encode(FULL)) - 3))
def test_every_truncation_is_noticed(length: int) -> None:
    with pytest.raises(CorruptFile):
        decode(encode(FULL)[:length], "manifest.json")


def test_edited_by_hand() -> None:
    with pytest.raises(CorruptFile, match=r"manifest.json`: has digest .* it was changed after it was written"):
        decode(encode(FULL).replace(b'"step": 1000', b'"step": 2000'), "a/manifest.json")


def test_written_by_a_newer_version() -> None:
    with pytest.raises(UnknownFormat, match=r"has format version 7, this holdfast reads version 0"):
        decode(signed({"version": 7, "shape": "unknown"}), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "step -1 of a checkpoint is not between"),
        ({"step": 2**70}, r"step|is damaged"),
        ({"step": "1"}, "is damaged: Expected `int`"),
        ({"batch": -5}, "batch -5"),
        ({"time": "2025-01-01T12:00:00"}, "its time has no time zone"),
        ({"time": "yesterday"}, "is damaged"),
        ({"metrics": {"loss": "0x10"}}, "metric loss is '0x10', no number"),
        ({"metrics": {"loss": [1]}}, "is damaged"),
        ({"objects": {"model": 3}}, "of object model is no JSON object"),
        ({"objects": {"model": {"w": {"$tensor": 0}}}}, "a manifest has no tensors"),
        ({"files": {"m": {"size": -1, "digest": ""}}}, "file m: its size -1 or head None can't be"),
        ({"files": {"m": {"size": 5, "digest": "", "head": 6}}}, "can't be"),
        ({"files": {"m": {"size": 5, "digest": "", "tail": 6}}}, "is damaged"),
        ({"files": {"m": {"size": 5, "digest": ""}, "M": {"size": 5, "digest": ""}}}, "differ only in case"),
    ],
)
def test_a_lie_with_a_right_digest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        decode(signed(plain(**changes)), "manifest.json")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", ".partial", "a\x1b[31m"])
def test_a_file_name_that_leads_out_is_refused_and_shown_escaped(name: str) -> None:
    with pytest.raises(RefusedFile, match="no plain name inside the folder") as caught:
        decode(signed(plain(files={name: {"size": 1, "digest": ""}})), "manifest.json")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"version": 0}'])
def test_not_a_manifest(data: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"manifest\.json"):
        decode(data, "manifest.json")


def test_no_digest_at_the_end() -> None:
    content = plain()
    with pytest.raises(CorruptFile, match="does not end with its digest"):
        decode(json.dumps({"digest": "", **content}).encode(), "manifest.json")


def test_what_can_not_be_written() -> None:
    with pytest.raises(ArgumentError, match="needs a time zone"):
        encode(Manifest(run="abc", step=1, time=NOON.replace(tzinfo=None)))
    with pytest.raises(ArgumentError, match="epoch -1"):
        encode(Manifest(run="abc", step=1, time=NOON, epoch=-1))
    with pytest.raises(ArgumentError, match="plain values only, not object"):
        encode(Manifest(run="abc", step=1, time=NOON, objects={"model": {"x": object()}}))


def test_reading_from_a_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="missing from the checkpoint"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_bytes(encode(FULL))
    assert read_manifest(str(tmp_path)).step == 1000
    monkeypatch.setattr(room, "MANIFEST_LIMIT", 100)
    with pytest.raises(RefusedFile, match="at most 100 are read"):
        read_manifest(str(tmp_path))
