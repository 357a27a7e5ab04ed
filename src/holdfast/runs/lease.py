"""One writer for each run in a store: an object that its holder keeps fresh, since no kernel drops it for a dead one.

The lock is the object ``.lock``. It is created unless it exists, which the store decides for all who ask at once, and
from then on only replaced by who knows its ETag. Its holder writes it anew every 15 seconds. One that was left alone
for 60 seconds may be taken over; both times are the store's own, so clocks of machines do not matter. A process of this
machine that has died is seen at once, so a training that is started again after a crash goes on without waiting.

Who was taken over, because it could not reach the store for a minute, finds that out when it next writes the lock,
which it does before each commit, and commits nothing any more.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import threading

import msgspec

from holdfast.errors import HoldfastError, NotFound, RunLocked, StorageError
from holdfast.runs.layout import LOCK_FILE
from holdfast.state.paths import printable
from holdfast.storage.remote.store import Meta, Store, store_of

LEASE = 60.0
"""Seconds after which a lock that nobody keeps fresh may be taken over."""
RENEWED = 15.0
"""Seconds between two renewals."""
_LIMIT = 4096


class LeaseHolder(msgspec.Struct, frozen=True):
    """Who writes a run: what the lock says.

    Attributes:
        token: of this holding of the lock, and of no other.
        pid: process id.
        host: name of its machine.
        boot: of that machine's present life, so that a process id means something.
        since: when it took the lock, ISO 8601 in UTC.
        count: renewals. With it no two writings of the lock are alike, and so no two ETags, which may be digests.
    """

    token: str
    pid: int
    host: str
    boot: str
    since: str
    count: int = 0


class RunLease:
    """The right to write a run in a store, from its creation to :meth:`release`.

    Args:
        root: the run's URL.

    Raises:
        RunLocked: another process, or this one, writes the run; the message names the holder.
        StorageError: the store ignores conditions, so that it can't keep two writers apart; or it does not answer.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.path = f"{self.root}/{LOCK_FILE}"
        self._store, self._key = store_of(self.path)
        self._pid = os.getpid()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._holder = LeaseHolder(secrets.token_hex(8), self._pid, socket.gethostname(), _boot(), now)
        self._meta: Meta | None = None
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._take(probe_conditions(self._store, self.root))
        self._thread = threading.Thread(target=self._keep_fresh, name="holdfast lock", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether this process holds the lock, as far as it knows; False after release, and in a forked child."""
        return self._meta is not None and self._pid == os.getpid()

    def check(self) -> None:
        """Makes sure that the run is still this process's, right before something is committed or removed.

        Raises:
            RunLocked: another process has taken it over.
            StorageError: the store does not answer.
        """
        with self._guard:
            self._renew()
        if self._meta is None:
            raise RunLocked(
                f"`{printable(self.root)}`: another process took this run over while the store could not be reached "
                "from here; nothing more is written by this one",
                file=self.root,
            )

    def __enter__(self) -> RunLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets go of the run. Releasing twice, or in a forked child, changes nothing for the holder."""
        if self._pid != os.getpid():
            return
        self._stop.set()
        with self._guard, contextlib.suppress(HoldfastError):
            if self._meta is not None:
                self._renew()  # only what is still ours is removed
            if self._meta is not None:
                self._meta = None
                self._store.delete([self._key])

    def _take(self, now: datetime.datetime) -> None:
        self._meta = self._store.create(self._key, self._text())
        if self._meta is not None:
            return
        try:
            data, meta = self._store.get(self._key, _LIMIT)
        except NotFound:
            raise self._locked(None, 0.0) from None  # it was let go of, or is being taken, this very moment
        holder, age = _decoded(data), (now - (meta.modified or now)).total_seconds()
        if self._is_mine(holder):
            self._meta = meta
            return
        if age <= LEASE and not _is_dead(holder):
            raise self._locked(holder, age)
        self._meta = self._store.swap(self._key, self._text(), meta)
        if self._meta is None:  # it was renewed, or taken over by someone else
            raise self._locked(None, 0.0)

    def _text(self) -> bytes:
        return msgspec.json.encode(self._holder)

    def _is_mine(self, holder: LeaseHolder | None) -> bool:
        """Whether a request of ours came through whose answer was lost."""
        return holder is not None and holder.token == self._holder.token

    def _keep_fresh(self) -> None:
        while not self._stop.wait(RENEWED) and self.held:
            with self._guard, contextlib.suppress(HoldfastError):  # it is tried again, and before the next commit
                if not self._stop.is_set():
                    self._renew()

    def _renew(self) -> None:
        """Writes the lock anew; after this ``_meta`` is None when it is another's."""
        if self._meta is None:
            return
        self._holder = msgspec.structs.replace(self._holder, count=self._holder.count + 1)
        renewed = self._store.swap(self._key, self._text(), self._meta)
        if renewed is None:
            try:
                data, meta = self._store.get(self._key, _LIMIT)
                renewed = meta if self._is_mine(_decoded(data)) else None
            except NotFound:
                renewed = None
        self._meta = renewed

    def _locked(self, holder: LeaseHolder | None, age: float) -> RunLocked:
        who = "another process"
        if holder is not None:
            who = f"pid {holder.pid} on {printable(holder.host[:200])} since {printable(holder.since[:50])}"
        left = max(0, round(LEASE - age)) + 1
        return RunLocked(
            f"`{printable(self.root)}`: {who} writes this run; stop it, or write to another folder. If it has died, "
            f"the run is free again in {left} s",
            file=self.root,
        )


def probe_conditions(store: Store, root: str) -> datetime.datetime:
    """Tries whether a store keeps what two writers of a run rely on, with a small object that is removed again.

    Returns:
        What time it is for the store.

    Raises:
        StorageError: it writes over an object that was to be created, or replaces one under a condition that is not
            met; or it refuses conditions.
    """
    _, base = store_of(f"{root}/.probe-{secrets.token_hex(8)}")
    try:
        first = store.create(base, b"1")
        if first is None:
            raise _ignores(root, "it refuses to create an object that does not exist")
        if store.create(base, b"2") is not None:
            raise _ignores(root, "it wrote over an object that was to be created only if absent")
        if store.swap(base, b"3", first) is None:
            raise _ignores(root, "it does not replace an object whose ETag is as expected")
        if store.swap(base, b"4", first) is not None:
            raise _ignores(root, "it replaced an object whose ETag was not the expected one")
        found = store.head(base)
        if found is None or found.modified is None:
            raise _ignores(root, "an object that was just written is not there")
        return found.modified
    finally:
        with contextlib.suppress(HoldfastError):
            store.delete([base])


def _ignores(root: str, what: str) -> StorageError:
    return StorageError(
        f"`{printable(root)}`: this store can't hold a run: {what}, so two writers could not be kept apart. Use one "
        "with conditional writes (S3, Google Cloud Storage, Azure, a recent MinIO or Ceph), or save single files there",
        file=root,
    )


def _decoded(data: bytes) -> LeaseHolder | None:
    try:
        return msgspec.json.decode(data, type=LeaseHolder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_dead(holder: LeaseHolder | None) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder is None or holder.host != socket.gethostname() or not holder.boot or holder.boot != _boot():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _boot() -> str:
    """What tells one life of this machine, and one container on it, from another; empty where nothing does.

    Process ids are counted anew in each pid namespace, so its name belongs to it.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
