"""Stores that fail: slow, refusing, dropping, dying, ignoring conditions; and two writers at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import RunLocked, StorageError
from holdfast.runs.catalog import scan
from holdfast.runs.lease import RunLease
from holdfast.storage.places import open_source, place_of, write_bytes
from holdfast.storage.remote import store
from holdfast.storage.remote.place import StoredStep, store_place
from tests.remote.servers import Bucket, Server, use

BIG = torch.arange(5_000_000, dtype=torch.float32)
"""20 MB: three parts."""


@pytest.mark.parametrize("kind", ["500", "drop"])
def test_a_few_failures_are_passed_over(faulty: Bucket, kind: str) -> None:
    url = f"{faulty.url}/w.safetensors"
    faulty.server.fault(kind, "PUT", times=2)
    holdfast.save({"w": BIG}, url)
    faulty.server.fault(kind, "GET", times=2)
    assert torch.equal(holdfast.load(url)["w"], BIG)
    faulty.server.fault(kind, "HEAD", times=2)
    assert holdfast.verify(url).status == "OK"


def test_an_answer_that_ends_early_is_asked_for_again(faulty: Bucket) -> None:
    url = f"{faulty.url}/w.safetensors"
    holdfast.save({"w": BIG}, url)
    faulty.server.fault("", times=0)
    assert torch.equal(holdfast.load(url)["w"], BIG)
    needed = faulty.server.seen(f"GET /{faulty.name}/w")
    faulty.server.fault("cut", f"GET /{faulty.name}/w", times=3)
    assert torch.equal(holdfast.load(url)["w"], BIG)
    assert faulty.server.seen(f"GET /{faulty.name}/w") >= needed + 3


def test_answers_that_always_end_early_are_an_error(faulty: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.storage.remote.source.time.sleep", lambda _: None)
    write_bytes(f"{faulty.url}/x", bytes(1000))
    source = open_source(f"{faulty.url}/x")
    faulty.server.fault("cut", f"GET /{faulty.name}/x", times=1000)
    with pytest.raises(StorageError, match=r"`s3://.*/x`: reading at byte 0 failed"):
        source.read(0, 1000)
    monkeypatch.setattr(store.Store, "begin", lambda *_: iter(()))  # and no error with it
    with pytest.raises(StorageError, match=r"`s3://.*/x`: the store ends its answers before byte 1,000"):
        source.read(0, 1000)


def test_a_store_that_always_fails_is_an_error_within_the_limits(faulty: Bucket) -> None:
    url = f"{faulty.url}/w.pt"
    holdfast.save({"w": torch.zeros(2)}, url)
    faulty.server.fault("500", f"/{faulty.name}/", times=1000)
    with pytest.raises(StorageError, match=r"asking for it failed: .*after 2 retries"):
        holdfast.load(url)
    with pytest.raises(StorageError, match=r"writing failed: .*503"):
        holdfast.save({"w": torch.ones(2)}, url)
    faulty.server.fault("", times=0)
    assert holdfast.load(url)["w"].sum() == 0


def test_a_slow_server_is_waited_for_up_to_a_limit(faulty: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{faulty.url}/w.pt"
    holdfast.save({"w": torch.ones(2)}, url)
    faulty.server.fault("slow", "HEAD", times=1)
    assert holdfast.load(url)["w"].sum() == 2
    monkeypatch.setattr(store, "LIMITS", store.Limits(retries=1, first=0.01, seconds=5, answer=0.5, connect=1))
    faulty.server.fault("slow", "HEAD", times=10)
    with pytest.raises(StorageError, match="asking for it failed"):
        holdfast.load(url)


def test_an_upload_that_fails_leaves_the_old_object_and_no_parts(faulty: Bucket) -> None:
    url = f"{faulty.url}/w.safetensors"
    holdfast.save({"w": torch.ones(2)}, url)
    faulty.server.fault("500", "partNumber=2", times=1000)
    with pytest.raises(StorageError, match="uploading failed"):
        holdfast.save({"w": BIG}, url)
    assert holdfast.load(url)["w"].sum() == 2
    assert faulty.uploads() == 0  # aborted: parts that nobody completes would be paid for, for ever


def test_a_server_that_dies_in_the_middle_of_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("-m", "tests.remote.server", "PORT")
    try:
        bucket = use(server, monkeypatch)
        net = nn.Linear(2, 1)
        run = holdfast.Run(f"{bucket.url}/a", model=net, big=nn.ParameterList([BIG]), rng=False)
        run.save(step=1)
        server.fault("die", "partNumber=2")
        with pytest.raises(StorageError, match=r"uploading failed: .*after 2 retries"):
            run.save(step=2)
        assert server.ended
        with pytest.raises(StorageError):
            run.save(step=3)  # at once, not after minutes
        run.close()  # nothing is under way; the lock can't be given back, and that is no error
    finally:
        server.stop()
        store._store.cache_clear()


@pytest.mark.parametrize("background", [False, True])
def test_a_store_that_is_away_for_a_while_costs_one_checkpoint(faulty: Bucket, background: bool) -> None:
    root, net = f"{faulty.url}/a", nn.Linear(2, 1)
    run = holdfast.Run(root, model=net, background=background)
    run.save(step=1)
    run.wait()
    faulty.server.fault("drop", f"PUT /{faulty.name}/a/step-00000002/", times=1000)
    with pytest.raises(StorageError, match="step-00000002"):
        run.save(step=2).wait()
    faulty.server.fault("", times=0)
    if background:  # it is said once more, by the next call of the run
        with pytest.raises(StorageError):
            run.wait()
    assert [one.step for one in scan(root).readable] == [1]
    run.save(step=3)
    run.close()
    assert [one.step for one in scan(root).readable] == [1, 3]
    assert holdfast.verify(root).status == "OK"
    with holdfast.Run(root, model=net) as again:
        assert again.resume() is not None
    assert not [key for key in faulty.names("a/") if "step-00000002" in key]
    assert faulty.uploads() == 0


def test_a_commit_whose_answer_was_lost_is_a_commit(faulty: Bucket) -> None:
    """The store wrote the manifest and could not say so; asked again, it says that there is one."""
    step = place_of(faulty.url).stage_step(f"{faulty.url}/a", "step-00000001")
    step.write_bytes("state.json", b"1")
    step.write_bytes("manifest.json", b"ours")
    faulty.put("a/step-00000001/manifest.json", b"ours")
    step.commit()
    step.abandon()
    assert len(faulty.names("a/step-00000001/")) == 2


# ---- two writers -----------------------------------------------------------------------------------------------------


def test_of_two_writers_of_a_step_exactly_one_wins(faulty: Bucket) -> None:
    """A hundred times, both past every check that comes before: only the store is left to decide."""
    place = store_place(faulty.url)
    for number in range(100):
        name = f"step-{number:08d}"
        both = [StoredStep(place, f"{faulty.url}/a", name) for _ in range(2)]
        for index, one in enumerate(both):
            one.write_bytes("state.json", b"%d" % index)
            one.write_bytes("manifest.json", one.data.encode())
        start, outcomes = threading.Barrier(2), dict[int, object]()

        def commit(
            index: int,
            one: StoredStep,
            start: threading.Barrier = start,
            outcomes: dict[int, object] = outcomes,
        ) -> None:
            start.wait()
            try:
                one.commit()
                outcomes[index] = "won"
            except StorageError as error:
                outcomes[index] = str(error)

        threads = [threading.Thread(target=commit, args=item) for item in enumerate(both)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [index for index, outcome in outcomes.items() if outcome == "won"]
        assert len(winners) == 1, outcomes
        assert "another writer committed it; nothing of this one was kept" in str(outcomes[1 - winners[0]])
        winner = both[winners[0]]
        assert faulty.get(f"a/{name}/manifest.json").decode() == winner.data
        assert faulty.names(f"a/{name}/") == sorted([f"a/{winner.data}/state.json", f"a/{name}/manifest.json"])


def test_of_many_who_ask_for_a_run_one_gets_it(faulty: Bucket) -> None:
    root = f"{faulty.url}/a"
    start, got, refused = threading.Barrier(6), [], []

    def ask() -> None:
        start.wait()
        try:
            got.append(RunLease(root))
        except RunLocked as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    got[0].release()
    assert faulty.names("a/") == []


# ---- stores that can't hold a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (1000, "it wrote over an object that was to be created only if absent"),
        (2, "it wrote over an object that was to be created only if absent"),
    ],
)
def test_a_store_that_ignores_conditions_is_refused_with_the_reason(faulty: Bucket, times: int, said: str) -> None:
    faulty.server.fault("unconditional", "/.probe-", times=times)
    with pytest.raises(StorageError, match=f"this store can't hold a run: {said}.*save single files there"):
        holdfast.Run(f"{faulty.url}/a", model=nn.Linear(2, 1))
    assert faulty.names() == []


class Careless(store.Store):
    """A store that creates what exists, or replaces what has changed; for the halves that a server has not."""

    answers: dict[str, object]

    def create(self, key: str, data: bytes) -> store.Meta | None:
        return self._answer("create", super().create(key, data))

    def swap(self, key: str, data: bytes, meta: store.Meta) -> store.Meta | None:
        return self._answer("swap", super().swap(key, data, meta))

    def head(self, key: str) -> store.Meta | None:
        return self._answer("head", super().head(key))

    def _answer(self, verb: str, given: store.Meta | None) -> store.Meta | None:
        return self.answers.get(verb, given)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"create": None}, "it refuses to create an object that does not exist"),
        ({"create": store.Meta(1, '"0"', None)}, "it wrote over an object"),
        ({"swap": None}, "it does not replace an object whose ETag is as expected"),
        ({"swap": store.Meta(1, '"0"', None)}, "it replaced an object whose ETag was not the expected one"),
        ({"head": None}, "an object that was just written is not there"),
    ],
)
def test_each_half_of_a_condition_is_tried(answers: dict[str, object], said: str) -> None:
    from holdfast.runs.lease import probe_conditions

    careless = Careless("memory://careless", store.LIMITS)
    careless.answers = answers
    with pytest.raises(StorageError, match=f"this store can't hold a run: {said}"):
        probe_conditions(careless, "memory://careless/a")


# ---- the lock --------------------------------------------------------------------------------------------------------


def lease(root: str, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> RunLease:
    monkeypatch.setattr("holdfast.runs.lease.LEASE", seconds)
    monkeypatch.setattr("holdfast.runs.lease.RENEWED", 3600.0)
    return RunLease(root)


def test_a_lock_that_is_kept_fresh_is_not_taken(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.runs.lease.LEASE", 0.5)
    monkeypatch.setattr("holdfast.runs.lease.RENEWED", 0.1)
    held = RunLease(f"{memory}/fresh")
    for _ in range(8):
        threading.Event().wait(0.1)
        with pytest.raises(RunLocked, match="the run is free again in"):
            RunLease(f"{memory}/fresh")
    held.check()
    held.release()
    held.release()
    RunLease(f"{memory}/fresh").release()


def test_a_lock_left_alone_is_taken_over_and_its_holder_commits_nothing(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{memory}/left"
    monkeypatch.setattr("holdfast.runs.lease.RENEWED", 3600.0)
    run = holdfast.Run(root, model=nn.Linear(2, 1))
    run.save(step=1)
    monkeypatch.setattr("holdfast.runs.lease.LEASE", 0.2)
    threading.Event().wait(0.4)
    second = RunLease(root)
    with pytest.raises(RunLocked, match="another process took this run over"):
        run.save(step=2)
    assert [one.step for one in scan(root).readable] == [1]
    assert [name for name in place_of(root).names(root) if name.startswith("step")] == ["step-00000001"]
    run.close()
    second.check()  # the first one's release took nothing away
    second.release()


def test_two_renewals_are_never_alike(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's ETag is a digest of the bytes: a lock written anew with the same bytes would look as if left alone."""
    held = lease(f"{memory}/alike", monkeypatch, seconds=60)
    tags = set()
    for _ in range(3):
        held.check()
        tags.add(store.store_of(held.path)[0].get("alike/.lock", 4096)[0])
    assert len(tags) == 3
    held.release()


def test_the_lock_of_a_process_that_died_here_is_free_at_once(bucket: Bucket, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "train.py"
    script.write_text(
        "import sys, os, torch, holdfast\n"
        "run = holdfast.Run(sys.argv[1], model=torch.nn.Linear(2, 1))\n"
        "run.save(step=1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = f"{bucket.url}/a"
    done = subprocess.run([sys.executable, str(script), root], timeout=100, check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert "a/.lock" in bucket.names()
    with holdfast.Run(root, model=nn.Linear(2, 1)) as run:
        position = run.resume()
    assert position is not None
    assert position.step == 1
    assert "a/.lock" not in bucket.names()


def test_a_lock_of_another_machine_is_not_judged_by_its_process_id(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = lease(f"{memory}/other", monkeypatch, seconds=60)
    monkeypatch.setattr("holdfast.runs.lease.socket.gethostname", lambda: "elsewhere")
    monkeypatch.setattr("holdfast.runs.lease.os.kill", lambda *_: pytest.fail("it asked this machine"))
    with pytest.raises(RunLocked):
        RunLease(f"{memory}/other")
    held.release()
    write_bytes(f"{memory}/other/.lock", b"not ours")
    with pytest.raises(RunLocked, match="another process writes this run"):
        RunLease(f"{memory}/other")
