"""Cutting work into jobs of equal bytes, and the few threads that do them.

The threads are started once, shared by all, and never in the way of a fork or an exit.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from holdfast.spec import CHUNK

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Job = TypeVar("Job")
Piece = tuple[int, int, int]
"""(index of the request, first byte inside it, bytes): at most one digest chunk."""

BLOCK = 1024 * 1024
"""Bytes that are digested and moved in one go: they fit the second-level cache."""
PAGE = 4096
"""Bytes at whose multiples a write past the page cache begins and ends."""
_LARGEST = 2 * CHUNK
_SMALLEST = CHUNK // 2
_MOST = 8
"""Threads at most: beyond this, memory is the limit."""


def worker_count(workers: int | None) -> int:
    """Threads to use: what was asked for, else one for each core that this process may run on, 8 at most."""
    if workers is not None:
        return max(workers, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


def cut_jobs(lengths: Sequence[int], workers: int | None) -> list[list[Piece]]:
    """Jobs of 4 to 16 MiB, in order: few enough to cost nothing, many enough to keep all workers busy to the end.

    What is smaller in all stays one job and so runs without other threads.
    """
    limit = min(_LARGEST, max(_SMALLEST, sum(lengths) // (4 * worker_count(workers))))
    jobs: list[list[Piece]] = []
    job: list[Piece] = []
    room = limit
    for index, length in enumerate(lengths):
        for start in range(0, length, CHUNK) if length > CHUNK else (0,):
            size = min(CHUNK, length - start)
            job.append((index, start, size))
            room -= size
            if room <= 0:
                jobs.append(job)
                job, room = [], limit
    if job:
        jobs.append(job)
    return jobs


class _Kept(threading.local):
    """One block of memory for each thread, kept: fresh pages cost more than copying into warm ones."""

    block: memoryview | None = None


_kept = _Kept()


@contextmanager
def lent_block() -> Iterator[memoryview]:
    """This thread's own memory, :data:`BLOCK` bytes and two pages, from a page border.

    A job that starts another inside itself gets a fresh one.
    """
    block = _kept.block
    if block is None:
        block = memoryview(mmap.mmap(-1, BLOCK + 2 * PAGE))
    _kept.block = None
    try:
        yield block
    finally:
        _kept.block = block


def run_jobs(jobs: Iterable[Job], do: Callable[[Job], None], workers: int | None = None) -> None:
    """Calls ``do`` once for each job, on several threads of which the caller's is one.

    The first error is raised, after the jobs that wait are dropped and those that run have ended: when this returns,
    no thread touches the caller's memory or descriptors any more, also after an interrupt.
    """
    queue = deque(jobs)
    errors: list[BaseException] = []

    def work() -> None:
        while True:
            try:
                job = queue.popleft()
            except IndexError:
                return
            try:
                do(job)
            except BaseException as error:
                errors.append(error)
                queue.clear()

    futures = _threads.start(work, min(worker_count(workers), len(queue)) - 1)
    try:
        work()
    except BaseException:  # an interrupt between two jobs
        queue.clear()
        raise
    finally:
        _join(futures, queue, errors)
    if errors:
        raise errors[0]


def _join(futures: list[Future[None]], queue: deque[Job], errors: list[BaseException]) -> None:
    for future in futures:
        future.cancel()  # one that has not started has nothing left to do: the caller emptied the queue
    if not futures:
        return
    from concurrent.futures import wait

    while not all(future.done() for future in futures):
        try:
            wait(futures)
        except BaseException as error:  # an interrupt: stop soon, but never leave threads behind that still write
            queue.clear()
            errors.append(error)


class _Threads:
    """The shared pool, made when it is first needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, work: Callable[[], None], count: int) -> list[Future[None]]:
        """Runs ``work`` on ``count`` threads, or on fewer: at interpreter exit none can be started any more."""
        futures: list[Future[None]] = []
        if count > 0:
            from concurrent.futures import ThreadPoolExecutor  # it loads logging; small files need no second thread

            with self._lock:
                pool = self._pool = self._pool or ThreadPoolExecutor(_MOST, thread_name_prefix="holdfast")
            with suppress(RuntimeError):
                for _ in range(count):
                    futures.append(pool.submit(work))
        return futures


_threads = _Threads()
# A forked child has the pool's object but none of its threads: work given to it would wait for ever.
os.register_at_fork(after_in_child=_threads.forget)
