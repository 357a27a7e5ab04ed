"""Safetensors headers that lie: one generator a lie, and every one is the right error with file and reason."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UnknownFormat
from holdfast.formats import safetensors
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.formats.safetensors_header import HEADER_LIMIT
from holdfast.spec import TensorSpec
from holdfast.state.values import Opaque
from holdfast.storage.atomic import replace_file
from holdfast.storage.digest import digest_bytes
from holdfast.storage.requests import Check, verify_ranges
from holdfast.storage.source import MemorySource

FILE = "evil\x1b[2J.safetensors"
SHOWN = "`evil\\x1b[2J.safetensors`: "


def entry(begin: int, end: int, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def plain(header: dict[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def read(data: bytes) -> Document:
    return safetensors.open(MemorySource(data), FILE).document()


def refused(data: bytes, error: type[FormatError], reason: str) -> FormatError:
    with pytest.raises(FormatError) as caught:
        read(data)
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(SHOWN)
    assert reason in message
    assert len(message) < 1000
    assert caught.value.file == FILE
    assert "\x1b" not in message
    return caught.value


def test_the_generator_makes_files_that_can_be_read() -> None:
    data = plain({"__metadata__": {"a": "b"}, "x": entry(0, 2), "y": entry(2, 4)}, b"abcd")
    assert list(read(data).tree) == ["x", "y"]


A = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'

LIES: dict[str, tuple[bytes, type[FormatError], str]] = {
    "no length": (b"\1\2\3", CorruptFile, "has 3 bytes, a safetensors file has at least 8: cut short"),
    "length past the limit": (
        (HEADER_LIMIT + 1).to_bytes(8, "little") + b"{",
        RefusedFile,
        "its first 8 bytes say that the header has 100,000,001 bytes, the limit is 100,000,000",
    ),
    "length past the file": (
        (50).to_bytes(8, "little") + b"{}",
        CorruptFile,
        "the header should have 50 bytes, the file ends after 2",
    ),
    "length of nothing": (plain(""), CorruptFile, "the header begins with b'', not with a brace"),
    "no object": (plain("[]"), CorruptFile, "at byte 8: the header begins with b'[', not with a brace"),
    "not JSON": (plain("{'a': 1}"), CorruptFile, "is no valid safetensors header: JSON is malformed"),
    "cut JSON": (plain("{" + A), CorruptFile, "is no valid safetensors header: Input data was truncated"),
    "behind the JSON": (plain("{}x"), CorruptFile, "is no valid safetensors header: JSON is malformed"),
    "not UTF-8": (plain(b'{"\xff":1}'), CorruptFile, "is no valid safetensors header"),
    "deep": (plain('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), CorruptFile, "no valid safetensors header"),
    "deep in an ignored key": (
        plain('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":' + "[" * 99_999 + "]" * 99_999 + "}}", b"a"),
        CorruptFile,
        "recursion",
    ),
    "a tensor that is a number": (
        plain({"a": 1}),
        CorruptFile,
        "the entry of `a` in its header is wrong: Expected `object`",
    ),
    "a missing field": (
        plain({"a": {"dtype": "U8", "shape": []}}),
        CorruptFile,
        "missing required field `data_offsets`",
    ),
    "a negative size": (
        plain({"a": entry(0, 1, shape=[-1])}, b"a"),
        CorruptFile,
        "Expected `int` >= 0 - at `$.shape[0]`",
    ),
    "a float size": (plain({"a": entry(0, 1, shape=[1.0])}, b"a"), CorruptFile, "Expected `int`, got `float`"),
    "a bool size": (plain({"a": entry(0, 1, shape=[True])}, b"a"), CorruptFile, "Expected `int`, got `bool`"),
    "a huge size": (
        plain({"a": entry(0, 1, shape=[2**63])}, b"a"),
        CorruptFile,
        "Expected `int` <= 9223372036854775807",
    ),
    "a size of many digits": (
        plain('{"a":{"dtype":"U8","shape":[' + "9" * 1_000_000 + '],"data_offsets":[0,1]}}', b"a"),
        CorruptFile,
        "the entry of `a` in its header is wrong",
    ),
    "too many dimensions": (
        plain({"a": entry(0, 1, shape=[1] * 65)}, b"a"),
        CorruptFile,
        "Expected `array` of length <= 64",
    ),
    "three offsets": (
        plain({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"a"),
        CorruptFile,
        "Expected `array` of length 2",
    ),
    "numbers that wrap": (
        plain({"a": entry(0, 0, "F32", [2**62, 2**62])}),
        CorruptFile,
        "takes 85,070,591,730,234,615,865,843,651,857,942,052,864 bytes, its offsets [0, 0] hold 0",
    ),
    "an empty shape that wraps": (
        plain({"a": entry(0, 0, "F32", [0, 2**62, 2**62])}),
        CorruptFile,
        "is too large for any machine",
    ),
    "offsets backwards": (plain({"a": entry(1, 0, shape=[1])}, b"a"), CorruptFile, "its offsets [1, 0] hold -1"),
    "shape against offsets": (
        plain({"a": entry(0, 4, "F32", [2])}, b"abcd"),
        CorruptFile,
        "[2] F32 takes 8 bytes, its offsets [0, 4] hold 4",
    ),
    "an overlap": (
        plain({"a": entry(0, 2), "b": entry(1, 3)}, b"abc"),
        CorruptFile,
        "`b`: its bytes begin at 1, not at 2: it overlaps `a`",
    ),
    "the same place": (plain({"a": entry(0, 2), "b": entry(0, 2)}, b"ab"), CorruptFile, "it overlaps `a`"),
    "a hole": (
        plain({"a": entry(0, 1), "b": entry(2, 3)}, b"abc"),
        CorruptFile,
        "`b`: its bytes begin at 2, not at 1: it leaves a hole",
    ),
    "a hole at the start": (plain({"a": entry(1, 2)}, b"ab"), CorruptFile, "`a`: its bytes begin at 1, not at 0"),
    "bytes left over": (
        plain({"a": entry(0, 1)}, b"ab"),
        CorruptFile,
        "take 1 bytes, 2 follow the header: bytes that belong to no tensor",
    ),
    "bytes missing": (plain({"a": entry(0, 9)}, b"ab"), CorruptFile, "take 9 bytes, 2 follow the header: cut short"),
    "a dtype of tomorrow": (
        plain({"a": entry(0, 1, "F7\x1b")}, b"a"),
        UnknownFormat,
        "`a` has dtype 'F7\\x1b', which this version does not know",
    ),
    "a name twice": (plain("{" + A + "," + A + "}", b"a"), CorruptFile, "`a` stands twice in its header"),
    "a name twice, escaped": (
        plain(
            '{"a:":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a\\u003a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
            b"a",
        ),
        CorruptFile,
        "`a:` stands twice in its header",
    ),
    "a field twice": (
        plain('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"a"),
        CorruptFile,
        "`dtype` stands twice in its header",
    ),
    "a metadata key twice": (plain('{"__metadata__":{"k":"1","k":"2"}}'), CorruptFile, "`k` stands twice"),
    "metadata twice": (
        plain('{"__metadata__":{"k":"1"},"__metadata__":{"k":"1"}}'),
        CorruptFile,
        "`__metadata__` stands twice",
    ),
    "metadata that is no text": (plain({"__metadata__": {"k": 1}}), CorruptFile, "Expected `str`, got `int`"),
    "a name that moves the cursor": (
        plain({"\x1b[2J\u202e": entry(1, 2)}, b"ab"),
        CorruptFile,
        "`\\x1b[2J\\u202e`: its bytes begin at 1",
    ),
    "a name that never ends": (plain({"n" * 1_000_000: entry(1, 2)}, b"ab"), CorruptFile, "nnn`: its bytes begin at 1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str) -> None:
    refused(*LIES[lie])


def test_odd_but_true_headers_are_read() -> None:
    spaced = plain(
        '{ "a:b\\u003a" : {"shape":[ ], "data_offsets":[0,1],"dtype":"U8","note":"x:y"} , "__metadata__":null}   ', b"a"
    )
    assert list(read(spaced).tree) == ["a:b:"]
    assert read(plain({"a": entry(0, 0, shape=[0, 2**40])})).tree["a"].spec.shape == (0, 2**40)
    assert read(plain({})).tree == {}


def test_memory_is_bounded_by_the_file() -> None:
    data = plain({"a": entry(0, 2**40), "b": entry(2**40, 2**41, shape=[2**20, 2**20])})
    tracemalloc.start()
    refused(data, CorruptFile, "cut short")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


# ---- our own record --------------------------------------------------------------------------------------------------


def ours(tmp_path: Path, tree: Any) -> bytes:
    with replace_file(tmp_path / "f") as staged:
        safetensors.write(staged, Document(tree, {"": {"kind": "module"}}, {"who": "me"}))
    return (tmp_path / "f").read_bytes()


def bytes_of(data: bytes) -> Segment:
    return Segment(MemorySource(data), 0, len(data))


def forged(record: dict[str, Any], entries: dict[str, Any], data: bytes) -> bytes:
    """A file whose record is sealed as a writer would seal it: lies inside are not found by the digest."""
    blank = "xxh3-128:" + "0" * 32
    text = json.dumps({"holdfast": 0, "digest": blank, **record}, separators=(",", ":"))
    raw = json.dumps({"__metadata__": {"holdfast": text}, **entries}, separators=(",", ":")).encode()
    return plain(raw.replace(blank.encode(), digest_bytes(raw).encode(), 1), data)


GOOD: dict[str, Any] = {"chunks": "0" * 32, "tree": {"x": {"$tensor": "a"}}, "objects": {}}
ENTRY = {"a": entry(0, 8)}
DATA = b"12345678"


def test_a_forged_record_that_tells_the_truth_is_read() -> None:
    assert read(forged(GOOD, ENTRY, DATA)).tree["x"].segment.name == "a"
    long = {"$tensor": ["a", "int16", [2, 2], [1, 2], 0, True, None]}
    assert read(forged(GOOD | {"tree": long}, ENTRY, DATA)).tree.requires_grad


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tree": {"$tensor": "b"}}, "its record refers to a tensor that is not there"),
        ({"tree": {"$tensor": 1}}, "its record refers to a tensor that is not there: Expected `array`, got `int`"),
        ({"tree": {"$tensor": ["b", "uint8", [1], None, 0, False, None]}}, "a tensor that is not there: 'b'"),
        ({"tree": {"$tensor": ["a", "uint7", [1], None, 0, False, None]}}, "a tensor that is not there: 'uint7'"),
        ({"tree": {"$tensor": ["a", "uint8", [9], None, 0, False, None]}}, "places (9,) uint8 at byte 0 of 8: outside"),
        (
            {"tree": {"$tensor": ["a", "uint8", [1], None, 8, False, None]}},
            "its record places (1,) uint8 at byte 8 of 8: outside",
        ),
        ({"tree": {"$tensor": ["a", "int16", [1], None, 1, False, None]}}, "places (1,) int16 at byte 1 of 8: outside"),
        ({"tree": {"$tensor": ["a", "uint8", [2, 2], [7, 2], 0, False, None]}}, "places (2, 2) uint8 at byte 0"),
        ({"tree": {"$tensor": ["a", "uint8", [2], [-1], 0, False, None]}}, "Expected `int` >= 0"),
        ({"tree": {"$tensor": ["a", "uint8", [2], None, -1, False, None]}}, "Expected `int` >= 0"),
        (
            {"tree": {"$tensor": ["a", "uint8", [2], [1, 1], 0, False, None]}},
            "1 dimensions and another count of strides",
        ),
        (
            {"tree": {"$tensor": ["a", "uint8", [2], None, 0, False, [1, 1]]}},
            "1 dimensions and another count of strides",
        ),
        ({"tree": {"$tensor": ["a", "uint8", [1] * 65, None, 0, False, None]}}, "of length <= 64"),
        ({"tree": {"$bytes": "?"}}, "its tree of values is damaged"),
        ({"tree": deep(600)}, "nested deeper than 500 levels"),
        ({"chunks": ""}, "its record has 0 chunk digests, its tensors have 1 chunks"),
        ({"chunks": "0" * 64}, "its record has 2 chunk digests, its tensors have 1 chunks"),
        ({"objects": []}, "the objects in its record are not a dict of dicts"),
        ({"objects": {"model": 1}}, "the objects in its record are not a dict of dicts"),
        ({"chunks": 7}, "its metadata key `holdfast` is no record of ours: Expected `str`, got `int`"),
    ],
)
def test_a_sealed_record_that_lies_is_refused(change: dict[str, Any], reason: str) -> None:
    refused(forged(GOOD | change, ENTRY, DATA), CorruptFile, reason)


def test_a_record_nested_past_what_a_decoder_survives_is_refused() -> None:
    data = forged(GOOD, ENTRY, DATA)
    start = data.index(b"{", 8)
    deeper = (
        data[start:].split(b"12345678")[0].replace(b'\\"tree\\":', b'\\"tree\\":' + b"[" * 50_000 + b"]" * 50_000, 1)
    )
    refused(plain(deeper, DATA), CorruptFile, "is no record of ours")


def test_a_record_that_another_program_copied_is_refused() -> None:
    data = forged(GOOD, ENTRY, DATA)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    reason = "damaged, or rewritten by a program that copied the metadata key `holdfast`, which must then be left out"
    lying = plain({"__metadata__": header["__metadata__"], "b": entry(0, 8)}, DATA)
    refused(lying, CorruptFile, reason)
    refused(lying, CorruptFile, "its header has digest")
    first = {"a": header["a"], "__metadata__": header["__metadata__"]}
    refused(plain(first, DATA), CorruptFile, reason)
    moved = {"__metadata__": {"holdfasu": header["__metadata__"]["holdfast"]}, "a": header["a"]}
    refused(plain(moved, DATA), CorruptFile, "its record stands under the name `holdfasu`")
    refused(
        plain({"__metadata__": {"holdfast": "hi"}}), CorruptFile, "its metadata key `holdfast` is no record of ours"
    )


def test_classes_in_a_record_stay_inert() -> None:
    tree = {"$opaque": ["os.system", ["echo fired"], None]}
    assert read(forged(GOOD | {"tree": tree}, ENTRY, DATA)).tree == Opaque("os.system", ["echo fired"], None)


def noticed(data: bytes) -> bool:
    """Whether reading and verifying a file finds something wrong with it."""
    try:
        container = safetensors.open(MemorySource(data), FILE)
        container.document()
    except FormatError:
        return True
    checks = [
        Check(part.source, part.offset, part.length, part.chunks, None, part.name) for part in container.segments()
    ]
    return bool(verify_ranges(checks))


def test_every_flipped_bit_and_every_cut_of_our_files_is_noticed(tmp_path: Path) -> None:
    shared = bytes_of(bytes(range(32)))
    tree = {
        "w": StoredTensor(TensorSpec("int32", (2, 4)), shared),
        "t": StoredTensor(TensorSpec("int32", (4, 2), (1, 4)), shared),
        "z": StoredTensor(TensorSpec("complex128", (2,)), bytes_of(bytes(32))),
        "lr": 0.1,
    }
    data = ours(tmp_path, tree)
    assert not noticed(data)
    missed = [
        (at, bit)
        for at in range(len(data))
        for bit in range(8)
        if not noticed(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    ]
    assert missed == []
    assert all(noticed(data[:end]) for end in range(len(data)))
    assert noticed(data + b"\0")


def answer(data: bytes) -> str:
    """The error that a file gives, or nothing."""
    try:
        read(data)
    except FormatError as error:
        return str(error)
    return ""


def test_noise_in_the_header_never_raises_anything_else(tmp_path: Path) -> None:
    source = random.Random(7)
    data = ours(tmp_path, {"a": {"b": StoredTensor(TensorSpec("uint8", (3,)), bytes_of(b"abc"))}, "n": [1, None, "x"]})
    answers = []
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(source.randint(1, 4)):
            broken[source.randrange(len(broken))] = source.choice(b'{}[]",:\\019a\x00\xff')
        answers.append(answer(bytes(broken)))
    assert all(text.startswith(SHOWN) and "\x1b" not in text for text in answers if text)
    assert sum(map(bool, answers)) > 1900
