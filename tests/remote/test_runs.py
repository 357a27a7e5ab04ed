"""Runs in a store: the same verbs, the same rules, and what is different on the way there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, CorruptFile, NotFound, RunLocked, StorageError
from holdfast.runs.catalog import is_run, newest_step, scan
from holdfast.runs.lease import RunLease
from holdfast.runs.manifest import read_manifest
from holdfast.runs.moves import quarantine, sweep_run
from holdfast.runs.run_file import read_pins, write_pin
from tests.remote.servers import Bucket

DATA = [torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def train(root: str, epochs: int, **options: Any) -> tuple[nn.Module, holdfast.Run]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1))
    opt = torch.optim.AdamW(net.parameters(), lr=0.1)
    with holdfast.Run(root, model=net, optimizer=opt, best="loss:min", **options) as run:
        for epoch in run.epochs(epochs):
            for batch in run.batches(DATA):
                loss = net(batch).square().mean()
                opt.zero_grad()
                loss.backward()
                opt.step()
            run.end(epoch, loss=float(loss.detach()))
    return net, run


def steps(root: str) -> list[int]:
    return [one.step for one in scan(root).readable]


@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_bit_for_bit(bucket: Bucket, background: bool) -> None:
    whole, _ = train(f"{bucket.url}/whole", 4, background=background)
    root = f"{bucket.url}/runs/parts"
    train(root, 2, background=background)
    parts, run = train(root, 4, background=background)
    assert run.position.step == 12
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    assert holdfast.verify(root).status == "OK"
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1))
    holdfast.restore(f"{root}@last", model=fresh)
    assert torch.equal(fresh[0].weight, parts[0].weight)  # type: ignore[index]
    assert torch.equal(run.last.build("model")[0].weight, parts[0].weight)  # type: ignore[index]


def test_a_background_save_holds_one_moment_while_training_goes_on(faulty: Bucket) -> None:
    """The upload is read in two passes; optimizer steps fall before, between and after them."""
    net = nn.Linear(1500, 1500)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with holdfast.Run(f"{faulty.url}/a", model=net, optimizer=opt, background=True, rng=False) as run:
        for step in (1, 2):
            faulty.server.fault("slow", "partNumber=1")
            at_save = net.weight.detach().clone()
            saved = run.save(step=step)
            for _ in range(3):
                net(torch.ones(1, 1500)).sum().backward()
                opt.step()
            assert not saved.done
            saved.wait()
            assert not torch.equal(net.weight, at_save)
            assert torch.equal(holdfast.load(f"{faulty.url}/a@last")["model"]["weight"], at_save)
    assert holdfast.verify(f"{faulty.url}/a").status == "OK"


def test_the_layout_is_the_one_that_is_written_down(bucket: Bucket) -> None:
    train(f"{bucket.url}/a", 1)
    manifest = read_manifest(f"{bucket.url}/a/step-00000003")
    step, _, attempt = manifest.data.partition("/")
    assert step == "step-00000003"
    assert len(attempt) == 16
    assert bucket.names() == sorted(
        ["a/run.json", "a/step-00000003/manifest.json"] + [f"a/{manifest.data}/{name}" for name in manifest.files]
    )
    assert json.loads(bucket.get("a/step-00000003/manifest.json"))["data"] == manifest.data
    from safetensors.torch import load as load_safetensors

    assert "0.weight" in load_safetensors(bucket.get(f"a/{manifest.data}/model.safetensors"))


def test_a_run_that_is_copied_to_a_disk_is_a_run(bucket: Bucket, tmp_path: Any) -> None:
    net, _ = train(f"{bucket.url}/a", 2)
    for key in bucket.names():
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(key))
    assert holdfast.verify(tmp_path / "a").status == "OK"
    _, run = train(str(tmp_path / "a"), 3)
    assert run.position.step == 9
    (tmp_path / "a" / "step-00000006").rename(tmp_path / "kept")
    assert torch.equal(holdfast.load(tmp_path / "kept")["model"]["0.weight"], net[0].weight)  # type: ignore[index]


def test_retention_best_and_pins(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 2, keep="last:1 best:1")
    write_pin(root, "paper", 3) if 3 in steps(root) else write_pin(root, "paper", 6)
    pinned = read_pins(root)["paper"]
    train(root, 5, keep="last:1")
    found = steps(root)
    assert pinned in found
    assert 15 in found
    assert len(found) <= 3
    assert {key.split("/")[1] for key in bucket.names() if "/step-" in key} == {f"step-{step:08d}" for step in found}
    assert holdfast.load(f"{root}@pin:paper")["loader"]["batch"] == 0
    with pytest.raises(NotFound, match="has no step-00000099 to pin"):
        write_pin(root, "x", 99)


def test_going_back_moves_the_future_aside_and_copies_nothing(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 3)
    old = read_manifest(f"{root}/step-00000009").data
    train(root, 3, resume="@step=6")
    assert scan(root).superseded == ("step-00000009",)
    assert steps(root) == [3, 6, 9]
    assert read_manifest(f"{root}/step-00000009").data != old
    with holdfast.open(f"{root}/superseded/step-00000009") as ckpt:
        assert ckpt["model.0.weight"].read().shape == (4, 4)
    with RunLease(root):
        sweep_run(root)  # what is superseded is not left over
    assert holdfast.verify(f"{root}/superseded/step-00000009").status == "OK"
    train(root, 3, resume=False)
    assert scan(root).superseded == tuple(f"step-0000000{name}" for name in ("3", "6", "9", "9-2"))
    assert newest_step(root) == 9


def test_a_damaged_checkpoint_is_set_aside(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 2)
    key = next(key for key in bucket.names("a/step-00000006/") if key.endswith("model.safetensors"))
    data = bytearray(bucket.get(key))
    data[-1] ^= 1
    bucket.put(key, bytes(data))
    report = holdfast.verify(root)
    assert report.status == "CORRUPT"
    assert [one.step for one in report.items if one.findings] == [6]
    _, run = train(root, 3)
    assert scan(root).quarantined == ("step-00000006",)
    assert run.position.step == 9
    assert holdfast.verify(root).status == "OK"


def test_what_was_not_committed_is_partial_and_goes_with_the_next_writer(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 1)
    bucket.put("a/step-00000009/0123456789abcdef/model.safetensors", b"x")
    bucket.put("a/step-00000003/fedcba9876543210/state.json", b"x")  # of a writer that lost
    bucket.put("a/notes.txt", b"mine")
    bucket.put("a/step-00000003/notes/x.txt", b"mine")
    bucket.put("ab/step-00000003/0123456789abcdef/x", b"another run's")
    assert scan(root).partial == (9,)
    assert newest_step(root) == 3
    assert steps(root) == [3]
    train(root, 2)
    left = bucket.names()
    assert not any("0123456789abcdef" in key or "fedcba" in key for key in left if key.startswith("a/"))
    assert {"a/notes.txt", "a/step-00000003/notes/x.txt", "ab/step-00000003/0123456789abcdef/x"} <= set(left)


def test_nothing_is_swept_while_a_manifest_cannot_be_read(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 1)
    good = bucket.get("a/step-00000003/manifest.json")
    bucket.put("a/step-00000003/manifest.json", good[:-20])
    with RunLease(root):
        sweep_run(root)
    bucket.put("a/step-00000003/manifest.json", good)
    assert holdfast.verify(root).status == "OK"


@pytest.mark.parametrize("data", ["../b", "step-00000003/../../x", "step-00000003", "x/0123456789abcdef", "/etc"])
def test_a_manifest_cannot_lead_out_of_its_run(memory: str, data: str) -> None:
    import msgspec

    from holdfast.runs.manifest import encode
    from holdfast.storage.places import write_bytes

    root = f"{memory}/{abs(hash(data))}"
    train(root, 1)
    manifest = read_manifest(f"{root}/step-00000003")
    write_bytes(f"{root}/step-00000003/manifest.json", encode(msgspec.structs.replace(manifest, data=data)))
    with pytest.raises(holdfast.HoldfastError, match="is no folder of a step"):
        holdfast.load(f"{root}@last")
    assert holdfast.verify(root).status == "CORRUPT"


def test_a_second_writer_is_refused_and_named(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    with holdfast.Run(root, model=nn.Linear(2, 1)) as run:
        with pytest.raises(RunLocked, match=r"pid \d+ on .* since .* writes this run"):
            holdfast.Run(root, model=nn.Linear(2, 1))
        run.save(step=1)
    with holdfast.Run(root, model=nn.Linear(2, 1)) as run:
        assert run.resume() is not None
        with pytest.raises(ArgumentError, match="step 1 is saved already"):
            run.save(step=1)


def test_read_back_reads_from_the_store(faulty: Bucket) -> None:
    with holdfast.Run(f"{faulty.url}/a", model=nn.Linear(2, 1), read_back=True) as run:
        faulty.server.fault("", times=0)
        run.save(step=1)
        assert faulty.server.seen("GET") >= 3
        assert faulty.server.seen("/model.safetensors") >= 3  # written, asked for, read


def test_a_run_needs_a_folder(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    with pytest.raises(StorageError, match="is a file, a run needs a folder; name another"):
        holdfast.Run(f"{bucket.url}/a", model=nn.Linear(2, 1))
    assert not is_run(f"{bucket.url}/none")
    with pytest.raises(NotFound, match="no such run"):
        holdfast.load(f"{bucket.url}/none@last")


def test_every_checkpoint_damaged_stops_a_training(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 1)
    bucket.put("a/step-00000003/manifest.json", b"{}")
    with pytest.raises(CorruptFile, match="every checkpoint is damaged"):
        train(root, 2)


def test_quarantine_says_why(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    train(root, 2)
    assert quarantine(root, 3, "tried out") == f"{root}/quarantine/step-00000003"
    assert json.loads(bucket.get("a/quarantine/step-00000003/reason.json"))["reason"] == "tried out"


def test_the_commands_of_a_run(bucket: Bucket) -> None:
    root = f"{bucket.url}/a"
    with holdfast.Run(root, model=nn.Linear(2, 1), keep="last:3") as run:
        for step in (3, 6, 9):
            run.save(step=step)

    def holdfast_(*arguments: str, code: int = 0) -> Any:
        command = [sys.executable, "-m", "holdfast", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    assert [one["step"] for one in holdfast_("ls", root)["checkpoints"]] == [3, 6, 9]
    assert holdfast_("path", f"{root}@-2") == {"path": f"{root}/step-00000006", "absolute": f"{root}/step-00000006"}
    assert holdfast_("show", f"{root}@last")
    assert holdfast_("pin", f"{root}@step=3", "paper")["step"] == 3
    with RunLease(root):
        assert "writes this run" in holdfast_("prune", root, "--keep", "last:1", code=5)
    holdfast_("prune", root, "--keep", "last:1")
    assert steps(root) == [3, 9]
    assert holdfast_("explain", root)
    assert holdfast_("verify", root)
