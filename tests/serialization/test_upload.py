"""Files into an accelerator, on a stand-in whose streams do their work as late as they may."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, RestoreIncomplete, StorageError
from holdfast.formats.base import Segment, StoredTensor
from holdfast.serialization import reading, upload
from holdfast.serialization.reading import fill, live_dtype
from holdfast.serialization.side_stream import SideStream
from holdfast.serialization.upload import BLOCKS, Upload, UploadRequest, bytes_of, cut_loads
from holdfast.spec import CHUNK, TensorSpec
from holdfast.storage.digest import chunk_digests, crc32
from holdfast.storage.source import FileSource, MemorySource
from tests.training.late_stream import Api


class Device:
    """CPU memory that counts as an accelerator's, and the pinned memory of its ring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = Api()
        self.pinned: list[int] = []
        self.upload = functools.partial(Upload, api=self.api, memory=self.memory)
        monkeypatch.setattr(reading, "has_streams", lambda device: device.type == "cpu")
        monkeypatch.setattr(reading, "Upload", self.upload)

    def memory(self, size: int) -> memoryview:
        self.pinned.append(size)
        return memoryview(bytearray(size))

    @property
    def waiting(self) -> int:
        return sum(stream.waiting for stream in self.api.made)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


class Net(nn.Module):
    """Tensors smaller than a block, larger than one, and exactly one."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.small = nn.ParameterList(nn.Parameter(torch.randn(7, 3).to(dtype)) for _ in range(5))
        self.large = nn.Parameter(torch.randn(CHUNK // 4 + 1001, 2).to(dtype))
        self.block = nn.Parameter(torch.randn(CHUNK // 4).to(dtype))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("mask", torch.arange(9).reshape(3, 3) % (seed + 1) == 0)


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def torchs(value: Any, file: Path) -> None:
    torch.save({name: one.state_dict() for name, one in value.items()}, file)


SAVERS = {
    "pt": holdfast.save,
    "safetensors": functools.partial(holdfast.save, format="safetensors"),
    "torch.save": torchs,
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_a_model_on_an_accelerator_is_restored(save: Callable[..., Any], device: Device, tmp_path: Path) -> None:
    saved, live = Net(1), Net(2)
    save({"model": saved}, tmp_path / "file")
    places = [parameter.data_ptr() for parameter in live.parameters()]
    holdfast.restore(tmp_path / "file", model=live)
    assert same(live, saved)
    assert [parameter.data_ptr() for parameter in live.parameters()] == places
    assert len(device.api.made) == 1
    assert len(device.pinned) <= BLOCKS
    assert max(device.pinned) <= CHUNK


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_new_tensors_are_read_once_and_checked_on_the_way(
    save: Callable[..., Any], device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Net(1)
    save({"model": saved}, tmp_path / "file")
    read: list[int] = []
    plain = FileSource.read_into

    def counted(self: FileSource, offset: int, buffer: memoryview) -> None:
        read.append(buffer.nbytes)
        plain(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", counted)
    loaded = holdfast.load(tmp_path / "file")["model"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.state_dict().items())
    assert device.api.made
    assert sum(read) < 1.1 * (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_damage_is_found_on_the_way(save: Callable[..., Any], device: Device, tmp_path: Path) -> None:
    file = tmp_path / "file"
    save({"model": Net(1)}, file)
    flip(file, file.stat().st_size // 3)
    with pytest.raises(CorruptFile, match=r"model.large`.* has .*, the file says .*: corrupt"):
        holdfast.load(file)
    assert device.api.made
    assert device.waiting == 0


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


def test_a_damaged_file_changes_nothing_on_the_device(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    holdfast.save({"model": Net(1)}, file)
    flip(file, file.stat().st_size // 3)
    live = Net(2)
    with pytest.raises(CorruptFile, match=r"model.large"):
        holdfast.restore(file, model=live)
    assert same(live, Net(2))
    assert device.api.made == []


def test_shared_memory_is_shared_again_on_the_device(device: Device, tmp_path: Path) -> None:
    weight = torch.randn(300, 500)
    tied = {"a": weight, "b": weight, "row": weight[7], "turned": weight.t()}
    torch.save(tied, tmp_path / "tied.pt")
    loaded = holdfast.load(tmp_path / "tied.pt")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.items())
    assert {tensor.untyped_storage().data_ptr() for tensor in loaded.values()} == {loaded["a"].data_ptr()}
    assert loaded["turned"].stride() == (1, 500)
    assert sum(device.pinned) == weight.nbytes


@pytest.mark.parametrize("spare", [False, True])
def test_a_disk_that_fails_at_any_read(
    spare: bool, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.safetensors"
    holdfast.save({"model": Net(1)}, file)
    reads = Failing(monkeypatch)
    holdfast.restore(file, model=Net(2), spare=spare)
    total, kinds = reads.count, set()
    for left in range(2, total, 7):
        reads.begin(left)
        live = Net(2)
        with pytest.raises(StorageError) as caught:
            holdfast.restore(file, model=live, spare=spare)
        kinds.add(type(caught.value))
        assert device.waiting == 0
        assert same(live, Net(2)) or type(caught.value) is RestoreIncomplete
    assert (RestoreIncomplete in kinds) is not spare
    reads.begin(total)
    holdfast.restore(file, model=live, spare=spare)
    assert same(live, Net(1))


class Failing:
    """Reads of files that fail from one of them on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.left: int | None = None
        plain = FileSource.read_into

        def read_into(source: FileSource, offset: int, buffer: memoryview) -> None:
            self.count += 1
            if self.left is not None and self.count > self.left:
                raise StorageError(f"`{source.name}`: the disk is gone")
            plain(source, offset, buffer)

        monkeypatch.setattr(FileSource, "read_into", read_into)

    def begin(self, left: int) -> None:
        self.count, self.left = 0, left


# -- what passes through the ring, and what does not -------------------------------------------------------------------


def stored(tensor: torch.Tensor, dtype: str) -> StoredTensor:
    data = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    segment = Segment(MemorySource(data), 0, len(data), "t", chunk_digests(data), crc32(data))
    return StoredTensor(TensorSpec(dtype, tuple(tensor.shape)), segment)


TARGETS: dict[str, tuple[Callable[[], torch.Tensor], bool]] = {
    "alike": (lambda: torch.zeros(2, 3, 4, 5), True),
    "inside another": (lambda: torch.zeros(9, 3, 4, 5)[4:6], True),
    "of inference": (torch.inference_mode()(lambda: torch.zeros(2, 3, 4, 5)), True),
    "channels_last": (lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), False),
    "with gaps": (lambda: torch.zeros(2, 3, 4, 10)[..., ::2], False),
    "wider": (lambda: torch.zeros(2, 3, 4, 5, dtype=torch.float64), False),
}


@pytest.mark.parametrize(("make", "passes"), TARGETS.values(), ids=TARGETS)
def test_what_lies_otherwise_goes_the_other_way(make: Callable[[], torch.Tensor], passes: bool, device: Device) -> None:
    wanted, target = torch.randn(2, 3, 4, 5), make()
    with torch.inference_mode(target.is_inference()):
        fill([(stored(wanted, "float32"), target)])
        assert torch.equal(target.to(torch.float32), wanted)
    assert bool(device.pinned) is passes


def test_each_device_has_a_way_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[torch.device, list[UploadRequest]] = {}

    class Recording:
        def __init__(self, device: torch.device) -> None:
            self.requests = made.setdefault(device, [])

        def carry_out(self, requests: list[UploadRequest]) -> list[Any]:
            self.requests += requests
            return []

    monkeypatch.setattr(reading, "has_streams", lambda _: True)
    monkeypatch.setattr(reading, "Upload", Recording)
    tensors = [torch.zeros(3), torch.zeros(3, device="meta"), torch.zeros(3)]
    fill([(stored(torch.ones(3), "float32"), tensor) for tensor in tensors])
    assert {device.type: len(requests) for device, requests in made.items()} == {"cpu": 2, "meta": 1}
    assert all(request.into.device == device for device, requests in made.items() for request in requests)


@pytest.mark.parametrize("dtype", ["bool", "int64", "bfloat16", "complex64", "float8_e4m3fn", "uint16"])
def test_any_dtype_is_bytes(dtype: str) -> None:
    whole = torch.zeros(6, 4, dtype=live_dtype(TensorSpec(dtype, (6, 4))))
    data = bytes_of(whole[2:4])
    assert data.dtype is torch.uint8
    assert data.data_ptr() == whole[2].data_ptr()
    assert data.numel() == 8 * whole.element_size()
    assert bytes_of(whole[0, 0]).numel() == whole.element_size()


# -- blocks and waits --------------------------------------------------------------------------------------------------


def test_loads_fill_blocks_and_keep_chunks_whole() -> None:
    assert cut_loads([]) == []
    assert cut_loads([0, 5, 0, 3]) == [[(1, 0, 5, 0), (3, 0, 3, 5)]]
    assert cut_loads([2 * CHUNK + 1, CHUNK - 1]) == [
        [(0, 0, CHUNK, 0)],
        [(0, CHUNK, CHUNK, 0)],
        [(0, 2 * CHUNK, 1, 0), (1, 0, CHUNK - 1, 1)],
    ]


SIZE = 64
"""Bytes of a chunk below: many blocks of few bytes."""


class Transfer:
    """Tensors of random bytes in one file, and the memory that they go into."""

    def __init__(self, lengths: list[int], seed: int = 0, *, blocks: int = 3, workers: int = 3) -> None:
        torch.manual_seed(seed)
        self.wanted = [torch.randint(0, 256, (length,), dtype=torch.uint8) for length in lengths]
        self.found = [torch.zeros_like(tensor) for tensor in self.wanted]
        self.api, self.pinned = Api(), 0
        self._blocks, self._workers = blocks, workers

    def memory(self, size: int) -> memoryview:
        self.pinned += size
        return memoryview(bytearray(size))

    def run(self, damaged: int | None = None) -> list[Any]:
        data = bytearray(b"".join(bytes(tensor.numpy()) for tensor in self.wanted))
        offsets = [sum(tensor.numel() for tensor in self.wanted[:index]) for index in range(len(self.wanted))]
        chunks = [tuple(chunk_digests(bytes(part.numpy()))[0] for part in tensor.split(SIZE)) if tensor.numel() else ()
                  for tensor in self.wanted]  # fmt: skip
        if damaged is not None:
            data[damaged] ^= 1
        source = MemorySource(bytes(data))
        requests = [
            UploadRequest(source, *rest, name=str(number))
            for number, rest in enumerate(zip(offsets, self.found, chunks, strict=True))
        ]
        way = Upload(torch.device("cpu"), self.api, memory=self.memory, blocks=self._blocks)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(upload, "CHUNK", SIZE)
            return way.carry_out(requests, workers=self._workers)

    @property
    def arrived(self) -> bool:
        return all(map(torch.equal, self.found, self.wanted))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 3 * SIZE), st.sampled_from([SIZE - 1, SIZE, SIZE + 1, 20 * SIZE])), max_size=40),
    st.integers(0, 99),
    st.integers(1, 6),
    st.integers(1, 8),
)
def test_all_bytes_arrive(lengths: list[int], seed: int, blocks: int, workers: int) -> None:
    transfer = Transfer(lengths, seed, blocks=blocks, workers=workers)
    assert transfer.run() == []
    assert transfer.arrived
    assert transfer.pinned <= blocks * SIZE
    assert sum(stream.waiting for stream in transfer.api.made) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3 * SIZE), min_size=1, max_size=20), st.data())
def test_a_damaged_byte_is_named_and_stays_on_the_host(lengths: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, sum(lengths) - 1))
    transfer = Transfer(lengths)
    (damage,) = transfer.run(damaged=at)
    index = next(number for number in range(len(lengths)) if at < sum(lengths[: number + 1]))
    begin = sum(lengths[:index])
    assert damage.name == str(index)
    assert damage.offset == begin + (at - begin) // SIZE * SIZE
    assert transfer.found[index][at - begin] == 0


def test_a_checksum_of_the_whole_is_compared() -> None:
    data = bytes(torch.randint(0, 256, (2 * CHUNK + 5,), dtype=torch.uint8).numpy())
    transfer = Transfer([])
    for known, damages in ((crc32(data), 0), (crc32(data) ^ 1, 1)):
        request = UploadRequest(MemorySource(data), 0, torch.zeros(len(data), dtype=torch.uint8), crc32=known, name="t")
        found = Upload(torch.device("cpu"), transfer.api, memory=transfer.memory).carry_out([request])
        assert len(found) == damages
    assert (found[0].name, found[0].offset, found[0].length) == ("t", 0, len(data))
    assert found[0].found == f"crc32 {crc32(data):08x}"


def test_a_file_that_ends_too_early_leaves_no_copy_behind() -> None:
    transfer = Transfer([])
    requests = [UploadRequest(MemorySource(bytes(10)), 0, torch.ones(size, dtype=torch.uint8)) for size in (4, 11)]
    with pytest.raises(CorruptFile, match="11 bytes are wanted"):
        Upload(torch.device("cpu"), transfer.api, memory=transfer.memory).carry_out(requests)
    assert sum(stream.waiting for stream in transfer.api.made) == 0


def test_work_that_was_started_before_sees_the_old_bytes() -> None:
    transfer, seen = Transfer([5 * SIZE]), []
    transfer.api.current.start(lambda: seen.append(transfer.found[0].clone()))
    transfer.run()
    assert not seen[0].any()
    assert transfer.arrived


# -- the stand-in shows what is missing --------------------------------------------------------------------------------


def test_a_missing_wait_for_a_block_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload._Block, "event", property(lambda _: None, lambda *_: None), raising=False)
    transfer = Transfer([20 * SIZE])
    transfer.run()
    assert not transfer.arrived


def test_a_missing_wait_at_the_end_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(SideStream, "mark", lambda _: Never())
    transfer = Transfer([SIZE])
    transfer.run()
    assert not transfer.arrived


def test_a_missing_wait_for_what_was_started_before_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SideStream, "begin", lambda _: None)
    transfer, seen = Transfer([5 * SIZE]), []
    transfer.api.current.start(lambda: seen.append(transfer.found[0].clone()))
    transfer.run()
    transfer.api.current.run(1)
    assert seen[0].any()
