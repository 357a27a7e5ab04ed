"""Single files in a store: every verb that takes a path takes a URL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, NotFound, StorageError
from holdfast.formats.safetensors_writing import write_tensors
from holdfast.storage.places import open_source, place_of
from holdfast.storage.remote.upload import StagedObject
from holdfast.storage.requests import Check, ReadRequest, WriteRequest, read_requests, verify_ranges
from tests.remote.servers import Bucket


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


@pytest.mark.parametrize("name", ["net.pt", "deep/folder/net.safetensors", "net"])
def test_a_model_comes_back_bit_for_bit(bucket: Bucket, name: str) -> None:
    model, url = net(), f"{bucket.url}/{name}"
    saved = holdfast.save({"model": model, "epoch": 3}, url)
    assert bucket.names() == [name]
    assert saved.bytes == len(bucket.get(name))
    assert holdfast.verify(url).status == "OK"
    fresh = net()
    nn.init.zeros_(fresh[0].weight)  # type: ignore[index]
    assert holdfast.restore(url, model=fresh).values["epoch"] == 3
    for one, other in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with holdfast.open(url) as ckpt:
        assert torch.equal(ckpt["model.0.weight"].read(), model[0].weight)  # type: ignore[index]
    assert torch.equal(holdfast.load(url)["model"]["2.bias"], model[2].bias)  # type: ignore[index]


def test_other_programs_read_what_is_there(bucket: Bucket, tmp_path: Path) -> None:
    from safetensors.torch import load as load_safetensors

    model = net()
    holdfast.save(model, f"{bucket.url}/net.pt")
    holdfast.save(model, f"{bucket.url}/net.safetensors")
    (tmp_path / "net.pt").write_bytes(bucket.get("net.pt"))
    assert torch.equal(torch.load(tmp_path / "net.pt")["0.weight"], model[0].weight)  # type: ignore[index]
    assert torch.equal(load_safetensors(bucket.get("net.safetensors"))["0.weight"], model[0].weight)  # type: ignore[index]


def test_what_others_wrote_is_read(bucket: Bucket, tmp_path: Path) -> None:
    torch.save({"state_dict": net().state_dict(), "epoch": 7}, tmp_path / "old.pth")
    bucket.put("old.pth", (tmp_path / "old.pth").read_bytes())
    assert holdfast.restore(f"{bucket.url}/old.pth", model=net()).values["epoch"] == 7
    assert holdfast.scan(f"{bucket.url}/old.pth").verdict == "plain"


def test_large_files_go_up_in_parts_and_come_down_in_few_requests(faulty: Bucket) -> None:
    tree = {"big": torch.arange(5_000_000, dtype=torch.float32), "small": [torch.full((100,), i) for i in range(300)]}
    faulty.server.fault("", times=0)
    holdfast.save(tree, f"{faulty.url}/big.safetensors")
    assert faulty.server.seen("partNumber=") == 3  # of 8 MiB
    assert faulty.server.seen("uploads") == 1
    assert faulty.uploads() == 0
    faulty.server.fault("", times=0)
    loaded = holdfast.load(f"{faulty.url}/big.safetensors")
    assert torch.equal(loaded["big"], tree["big"])
    assert all(torch.equal(one, other) for one, other in zip(loaded["small"], tree["small"], strict=True))
    assert faulty.server.seen(f"GET /{faulty.name}/") < 12  # one for 8 MiB, and the header


def test_torch_zips_of_many_tensors_open_in_few_requests(faulty: Bucket) -> None:
    holdfast.save([torch.full((50,), i) for i in range(200)], f"{faulty.url}/many.pt")
    faulty.server.fault("", times=0)
    with holdfast.open(f"{faulty.url}/many.pt") as ckpt:
        assert len(ckpt) == 200
    assert faulty.server.seen(f"GET /{faulty.name}/") <= 8


def test_a_damaged_object_is_located(bucket: Bucket) -> None:
    holdfast.save(net(), f"{bucket.url}/net.safetensors")
    data = bytearray(bucket.get("net.safetensors"))
    data[-3] ^= 1
    bucket.put("net.safetensors", bytes(data))
    report = holdfast.verify(f"{bucket.url}/net.safetensors")
    assert report.status == "CORRUPT"
    assert report.findings[0].file == f"{bucket.url}/net.safetensors"
    fresh = net()
    before = fresh[0].weight.clone()  # type: ignore[index]
    with pytest.raises(CorruptFile, match=f"{bucket.url}/net.safetensors"):
        holdfast.restore(f"{bucket.url}/net.safetensors", model=fresh)
    assert torch.equal(fresh[0].weight, before)  # type: ignore[index]


def test_a_cut_object_is_corrupt(bucket: Bucket) -> None:
    holdfast.save(net(), f"{bucket.url}/net.pt")
    bucket.put("cut.pt", bucket.get("net.pt")[:-100])
    with pytest.raises(CorruptFile, match="cut short"):
        holdfast.load(f"{bucket.url}/cut.pt")


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(bucket: Bucket) -> None:
    url = f"{bucket.url}/net.safetensors"
    holdfast.save({"w": torch.zeros(1_000_000)}, url)
    with holdfast.open(url) as ckpt:
        holdfast.save({"w": torch.ones(1_000_000)}, url)
        with pytest.raises(StorageError, match="was replaced after it was opened; open it again"):
            ckpt["w"].read()
    assert holdfast.load(url)["w"].sum() == 1_000_000


def test_what_is_not_there_is_said(bucket: Bucket) -> None:
    with pytest.raises(NotFound, match=r"/none\.pt`: no such object"):
        open_source(f"{bucket.url}/none.pt")
    with pytest.raises(NotFound, match=r"/none\.pt`: no such object"):
        place_of(bucket.url).remove(f"{bucket.url}/none.pt")


def test_a_step_in_a_store_has_its_own_bytes_in_its_own_place(bucket: Bucket) -> None:
    step = place_of(bucket.url).stage_step(f"{bucket.url}/a", "step-00000001")
    with pytest.raises(ArgumentError, match="a store shares no bytes between objects"):
        step.share(f"{bucket.url}/a/b", "b")
    step.abandon()
    place_of(bucket.url).write(f"{bucket.url}/a/step-00000001/manifest.json", b"theirs")
    with pytest.raises(StorageError, match="step-00000001`: its files are not where this version puts them; remove"):
        place_of(bucket.url).remove_step(f"{bucket.url}/a/step-00000001", "../elsewhere")
    assert bucket.names("a/") == ["a/step-00000001/manifest.json"]


def test_a_missing_bucket_is_said_to_be_the_reason(bucket: Bucket) -> None:
    with pytest.raises(NotFound, match="there is no bucket `s3://nosuchbucket`; create it first"):
        holdfast.load("s3://nosuchbucket/a.pt")
    with pytest.raises(NotFound, match="there is no bucket `s3://nosuchbucket`; create it first"):
        holdfast.save(net(), "s3://nosuchbucket/a.pt")
    with pytest.raises(NotFound, match="there is no bucket `s3://nosuchbucket`"):
        open_source("s3://nosuchbucket/a.pt")


def test_convert_goes_from_and_to_urls(bucket: Bucket, tmp_path: Path) -> None:
    holdfast.save({"w": torch.arange(10)}, f"{bucket.url}/w.pt")
    holdfast.convert(f"{bucket.url}/w.pt", f"{bucket.url}/w.safetensors")
    holdfast.convert(f"{bucket.url}/w.safetensors", tmp_path / "w.npz")
    assert holdfast.load(tmp_path / "w.npz")["w"].tolist() == list(range(10))


def test_the_commands_take_urls(bucket: Bucket) -> None:
    holdfast.save(net(), f"{bucket.url}/net.pt")
    code = """
import sys
from holdfast.cli.main import main
sys.argv = ["holdfast", *sys.argv[1:]]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    for verb in ("inspect", "verify", "scan"):
        command = [sys.executable, "-c", code, verb, f"{bucket.url}/net.pt", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{bucket.url}/net.pt" in json.dumps(json.loads(done.stdout))
    command = [sys.executable, "-m", "holdfast", "verify", f"{bucket.url}/none.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1


def test_a_failed_proof_replaces_nothing(memory: str) -> None:
    url = f"{memory}/w.pt"
    holdfast.save({"w": torch.zeros(2)}, url)

    def fail(_: object) -> None:
        raise RuntimeError("no")

    from holdfast.formats.writing import write_document
    from holdfast.transfer.save import document_of

    with pytest.raises(RuntimeError, match="no"):
        write_document(document_of({"w": torch.ones(2)}, row_major=False)[0], url, "pt", check=fail)
    assert holdfast.load(url)["w"].sum() == 0


# ---- the pieces ------------------------------------------------------------------------------------------------------


def test_bytes_that_change_between_digest_and_sending_are_noticed(memory: str) -> None:
    data = bytearray(20 << 20)
    place = place_of(memory)
    staging = place.stage(f"{memory}/x", durable=True)
    staging.__enter__().write([WriteRequest(0, data)])
    data[9 << 20] = 1
    with pytest.raises(StorageError, match=r"bytes 8,388,608 to 16,777,216 changed while they were saved"):
        staging.__exit__(None, None, None)
    assert place.kind(f"{memory}/x") is None


def test_a_planned_file_reads_as_it_will_be_sent() -> None:
    from holdfast.formats.base import Segment, StoredTensor
    from holdfast.spec import TensorSpec
    from holdfast.storage.source import MemorySource

    staged = StagedObject("s3://bucket/x")
    parts = {name: MemorySource(name.encode() * 300) for name in ("a", "b", "c")}
    specs = [
        (name, StoredTensor(TensorSpec("uint8", (300,)), Segment(part, 0, 300, name))) for name, part in parts.items()
    ]
    write_tensors(staged, specs)
    sent = b"".join(staged.blocks())
    planned = staged.written()
    assert planned.read(0, planned.size) == sent
    assert planned.read(len(sent) - 450, 300) == sent[-450:-150]


def write_and_send(staged: StagedObject, requests: list[WriteRequest]) -> list[bytes]:
    staged.write(requests)
    return list(staged.blocks())


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([WriteRequest(0, b"ab"), WriteRequest(3, b"c")], "bytes 2 to 3 were never written"),
        ([WriteRequest(0, b"ab"), WriteRequest(1, b"c")], "bytes 1 to 2 were written twice"),
        ([WriteRequest(0, b"abc")], "bytes 3 to 4 were never written"),
        ([WriteRequest(0, b"abcde")], "a write up to byte 5, 4 bytes were allocated"),
    ],
)
def test_gaps_and_overlaps_are_the_writers_mistake(requests: list[WriteRequest], message: str) -> None:
    staged = StagedObject("s3://bucket/x")
    staged.allocate(4)
    with pytest.raises(ArgumentError, match=message):
        write_and_send(staged, requests)
    with pytest.raises(ArgumentError, match="must come once, before anything is written"):
        staged.allocate(4)


def test_reads_of_all_sizes_give_the_same_bytes(bucket: Bucket) -> None:
    data = bytes(range(256)) * 40_000
    place_of(bucket.url).write(f"{bucket.url}/x", data)
    source = open_source(f"{bucket.url}/x")
    for offset, length in ((0, 10), (5, 70_000), (100, 3_000_000), (len(data) - 5, 5), (70_005, 20), (7, 0)):
        assert source.read(offset, length) == data[offset : offset + length]
    at = 0
    while at < 3_000_000:  # one after the other, as a file is copied
        assert source.read(at, 90_000) == data[at : at + 90_000]
        at += 90_000
    into = [bytearray(1_000_000) for _ in range(8)]
    requests = [ReadRequest(source, 1_000_001 * index, memoryview(one)) for index, one in enumerate(into)]
    assert read_requests(requests) == []
    for index, one in enumerate(into):
        assert one == data[1_000_001 * index : 1_000_001 * index + 1_000_000]
    damage = verify_ranges([Check(source, 0, len(data), ("0" * 32, "1" * 32))])
    assert [one.offset for one in damage] == [0, 8 << 20]
    with pytest.raises(CorruptFile, match="the file ends at byte"):
        source.read(len(data), 1)
    source.close()
