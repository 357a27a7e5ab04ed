"""Streams of torch < 1.6 that lie, each with the error that names the lie; a positive control that would run."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from holdfast.errors import CorruptFile, HoldfastError, RefusedFile
from holdfast.formats import legacy
from holdfast.formats.detect import open_container
from holdfast.storage.source import MemorySource


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    with legacy.open(MemorySource(data, name="evil.pt"), "evil\x1b.pt") as container:
        return container.document().tree


HONEST = saved({"w": torch.arange(3.0)})


def stream(pickled: bytes, keys: bytes = b"](X\x01\0\0\x000e", tail: bytes = struct.pack("<q", 3) + bytes(12)) -> bytes:
    frame = b"".join(request.source for request in legacy.stream_requests(b"\x80\x02" + pickled + b".", []))
    return frame.removesuffix(b"\x80\x02](e.") + b"\x80\x02" + keys + b"." + tail


PID = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x03NtQ"
VIEW = PID.replace(b"NtQ", b"(X\x01\0\0\0vK%cK%cttQ")
TENSOR = b"ctorch._utils\n_rebuild_tensor\n(%bK%c(K%ct(K\x01ttR"

LIES: dict[str, tuple[Callable[[], bytes], type[HoldfastError], str]] = {
    "no magic": (lambda: HONEST.replace(b"\x6c\xfc\x9c", b"\x6c\xfc\x9d"), CorruptFile, "the magic number is 1"),
    "no protocol": (lambda: HONEST.replace(b"M\xe9\x03.", b"M\xea\x03.", 1), CorruptFile, ", a torch stream has 1001"),
    "cut in the storage": (lambda: HONEST[:-5], CorruptFile, "needs 12 bytes, 7 are left; the file is cut short"),
    "cut in a length": (lambda: HONEST[:-16], CorruptFile, "8 bytes are wanted, the file ends"),
    "cut in the object": (lambda: HONEST[:150], CorruptFile, "of the pickle: ends in the middle"),
    "another length": (
        lambda: HONEST.replace(struct.pack("<q", 3), struct.pack("<q", 2)),
        CorruptFile,
        "has 2 elements, the object says 3",
    ),
    "a negative length": (
        lambda: HONEST.replace(struct.pack("<q", 3), struct.pack("<q", -3)),
        CorruptFile,
        "has -3 elements, the object says 3",
    ),
    "keys that are no list": (lambda: stream(PID, keys=b"N"), CorruptFile, "the storages have no list of distinct"),
    "a key twice": (
        lambda: stream(PID, keys=b"](X\x01\0\0\x000X\x01\0\0\x000e"),
        CorruptFile,
        "the storages have no list of distinct keys",
    ),
    "a key of nothing": (
        lambda: stream(PID, keys=b"](X\x01\0\0\x007e"),
        CorruptFile,
        "there is a storage 7 that the object does not use",
    ),
    "a storage without bytes": (
        lambda: stream(PID, keys=b"]", tail=b""),
        CorruptFile,
        "says that storage 0 has 12 bytes, the stream has no such storage",
    ),
    "one key, two dtypes": (
        lambda: stream(b"(" + PID + PID.replace(b"Float", b"Int") + b"t"),
        CorruptFile,
        "one of them is a lie",
    ),
    "past its storage": (lambda: stream(TENSOR % (PID, 1, 3)), CorruptFile, "needs 12 bytes, the record has 12"),
    "past its view": (
        lambda: stream(TENSOR % (VIEW % (0, 1), 1, 1)),
        CorruptFile,
        "reaches past its view of storage 0",
    ),
    "a view past its storage": (
        lambda: stream(VIEW % (2, 2)),
        CorruptFile,
        "a view of 8 bytes at byte 8 of the storage 0, which has 12",
    ),
    "a view of text": (lambda: stream(PID.replace(b"NtQ", b"NNtQ")), CorruptFile, "a tensor without a storage"),
    "a damaged view": (lambda: stream(PID.replace(b"NtQ", b"K\x01tQ")), CorruptFile, "whose view is damaged"),
    "a view of floats": (
        lambda: stream(VIEW.replace(b"K%cK%c", b"NN")),
        CorruptFile,
        "whose view is damaged",
    ),
    "two views of one name": (
        lambda: stream(b"(" + VIEW % (0, 1) + VIEW % (1, 1) + b"t"),
        CorruptFile,
        "two different views of the storage 0 with one name",
    ),
    "an unknown class": (
        lambda: stream(PID.replace(b"torch\nFloatStorage", b"os\nFloatStorage")),
        CorruptFile,
        "a storage of class os.FloatStorage",
    ),
    "an old tensor of text": (
        lambda: stream(b"ctorch\nFloatTensor\n(X\x01\0\0\0atR", keys=b"]", tail=b""),
        CorruptFile,
        "torch.FloatTensor takes a storage, an offset, sizes and strides",
    ),
    "a list of itself": (lambda: stream(b"]q\0h\0a", keys=b"]", tail=b""), RefusedFile, "a value that contains itself"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    make, error, text = LIES[lie]
    with pytest.raises(error) as caught:
        load(make())
    assert text in str(caught.value)
    assert "evil\\x1b.pt" in str(caught.value) or "evil.pt" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_the_frame_of_these_lies_is_honest() -> None:
    assert load(stream(TENSOR % (PID, 0, 3))).spec.shape == (3,)
    assert load(stream(TENSOR % (VIEW % (1, 2), 0, 2))).offset == 4


RAN: list[str] = []


def run() -> None:
    """What a planted pickle calls."""
    RAN.append("it ran")


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run, ()


def test_nothing_runs() -> None:
    RAN.clear()
    data = saved([Evil(), torch.nn.Linear(1, 1)])
    planted = data.replace(b"M\xe9\x03.", f"c{__name__}\nrun\n)R.".encode(), 1)
    for part in (data, planted):
        try:
            load(part)
        except HoldfastError:
            assert part is not data
    assert not RAN
    torch.load(io.BytesIO(data), weights_only=False)
    assert RAN == ["it ran"], "the control fires"
    with pytest.raises(RuntimeError):
        torch.load(io.BytesIO(planted), weights_only=False)
    assert len(RAN) == 2


def test_every_cut_is_an_error() -> None:
    for size in range(len(HONEST)):
        with pytest.raises(HoldfastError):
            open_container(MemorySource(HONEST[:size], name="cut.pt"), "cut.pt").document()


def test_flipped_bytes_raise_nothing_else() -> None:
    for at in range(len(HONEST)):
        for bit in (1, 128):
            data = bytearray(HONEST)
            data[at] ^= bit
            try:
                open_container(MemorySource(bytes(data), name="flip.pt"), "flip.pt").document()
            except HoldfastError:
                continue


def test_a_pickle_past_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "PICKLE_LIMIT", 1 << 16)
    with pytest.raises(RefusedFile, match="a pickle of more than 65,536 bytes, or a damaged one"):
        load(saved(["x" * 70_000]))


def test_memory_is_bounded_by_the_file() -> None:
    """A string that claims four gigabytes, and an integer that claims as much."""
    for claim in (b"X\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\xff"):
        data = stream(claim)
        tracemalloc.start()
        with pytest.raises(HoldfastError):
            load(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
