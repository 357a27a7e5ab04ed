from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from holdfast.spec import CHUNK
from holdfast.storage.workers import BLOCK, cut_jobs, lent_block, run_jobs, worker_count


def test_every_job_runs_once() -> None:
    done: list[int] = []
    threads: set[int] = set()

    def do(job: int) -> None:
        done.append(job)
        threads.add(threading.get_ident())
        time.sleep(0.001)

    run_jobs(range(50), do, workers=4)
    assert sorted(done) == list(range(50))
    assert 1 < len(threads) <= 4
    assert threading.get_ident() in threads


def test_one_job_needs_no_other_thread() -> None:
    threads = []
    run_jobs([1], lambda _: threads.append(threading.get_ident()), workers=8)
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_first_error_ends_it_and_nothing_runs_on(error: type[BaseException]) -> None:
    started: list[int] = []
    running = threading.Semaphore(0)

    def do(job: int) -> None:
        started.append(job)
        if job == 3:
            raise error("third")
        time.sleep(0.01)
        running.release()

    with pytest.raises(error, match="third"):
        run_jobs(range(1000), do, workers=4)
    count = len(started)
    assert count < 50
    time.sleep(0.05)
    assert len(started) == count


def test_jobs_within_jobs_do_not_wait_for_each_other() -> None:
    done: list[tuple[int, int]] = []

    def outer(job: int) -> None:
        run_jobs(range(4), lambda inner: done.append((job, inner)), workers=8)

    run_jobs(range(16), outer, workers=8)
    assert len(done) == 64


def test_blocks_are_kept_for_each_thread_and_never_lent_twice() -> None:
    with lent_block() as first:
        with lent_block() as second:
            assert second is not first
        assert first.nbytes == second.nbytes >= BLOCK
    with lent_block() as again:
        assert again is first


def test_cutting() -> None:
    lengths = [10, 3 * CHUNK + 5, 0, 7]
    jobs = cut_jobs(lengths, 1)
    pieces = [piece for job in jobs for piece in job]
    assert pieces == [
        (0, 0, 10),
        (1, 0, CHUNK),
        (1, CHUNK, CHUNK),
        (1, 2 * CHUNK, CHUNK),
        (1, 3 * CHUNK, 5),
        (2, 0, 0),
        (3, 0, 7),
    ]
    assert len(jobs) > 2
    assert len(cut_jobs([256] * 10_000, 8)) == 1
    assert len(cut_jobs([CHUNK] * 100, 8)) == 50  # 16 MiB each
    assert cut_jobs([], 8) == []


def test_worker_count() -> None:
    assert worker_count(3) == 3
    assert worker_count(0) == 1
    assert 1 <= worker_count(None) <= min(8, os.cpu_count() or 1)


def test_after_a_fork_and_at_exit() -> None:
    """A forked child gets threads of its own; at interpreter exit, when none can start, the caller does the work."""
    program = """
import atexit, os, time
from holdfast.storage.workers import run_jobs
def work():
    done = []
    def do(job):
        time.sleep(0.001)
        done.append(job)
    run_jobs(range(20), do, workers=4)
    assert sorted(done) == list(range(20))
    return len(done)
atexit.register(lambda: print("exit", work(), flush=True))
print("parent", work(), flush=True)
child = os.fork()
if child == 0:
    print("child", work(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split("\n") == ["parent 20", "child 20", "exit 20", ""]
