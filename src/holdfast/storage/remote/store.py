"""One bucket: the few verbs that are needed of it, with limits, and errors that say what to do."""

from __future__ import annotations

import datetime
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from holdfast.errors import ArgumentError, MissingExtra, NotFound, RefusedFile, StorageError
from holdfast.storage.source import shown

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

PART = 8 << 20
"""Bytes of one part of an upload, and of one ranged read: large enough that the way there and back costs little."""
PARALLEL = 8
"""Requests at a time, of one upload or of one read."""
_MOST_PARTS = 9_000
"""S3 takes 10,000 parts: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html."""
_ARRIVING = 1 << 20
"""Bytes that are taken from a connection at a time."""
_AT_ONCE = 1_000
"""Objects that are deleted in one request."""


class Limits(msgspec.Struct, frozen=True):
    """How long a store is waited for.

    Attributes:
        retries: times that a request is sent again after a connection that broke or an answer such as 503.
        first: seconds before the second attempt; doubled, with some chance, for each further one.
        seconds: after which nothing is sent again.
        answer: seconds in which one request has to be answered in full.
        connect: seconds in which a connection has to stand.
    """

    retries: int = 6
    first: float = 0.1
    seconds: float = 60.0
    answer: float = 120.0
    connect: float = 10.0


LIMITS = Limits()


class Meta(msgspec.Struct, frozen=True):
    """What a store says of an object.

    Attributes:
        size: bytes.
        tag: its ETag; None where the store has none.
        version: its version; None where the store counts none.
        modified: when it was written, by the store's clock; None where only a write was answered.
    """

    size: int
    tag: str | None
    version: str | None
    modified: datetime.datetime | None = None


def split_url(url: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` as the bucket's own URL and the key: ``("s3://bucket", "a/b")``.

    Raises:
        ArgumentError: it names no bucket, or its key has empty or dotted parts.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    scheme, key = scheme.lower(), key.rstrip("/")
    if not bucket and scheme != "memory":
        raise ArgumentError(f"`{shown(url)}`: names no bucket; write {scheme}://BUCKET/PATH", file=url)
    if re.search(r"[?#\s\\]", bucket) or any(part in ("", ".", "..") for part in key.split("/") if key):
        raise ArgumentError(f"`{shown(url)}`: is no plain URL of an object: {scheme}://BUCKET/PATH", file=url)
    return f"{scheme}://{bucket}", key


def store_of(url: str) -> tuple[Store, str]:
    """The store that a URL leads to, and the key in it.

    Raises:
        ArgumentError: as :func:`split_url`, or a setting in the environment is none.
        MissingExtra: obstore is not installed.
        StorageError: a setting is missing, such as Azure's account.
    """
    root, key = split_url(url)
    return _store(root, LIMITS, os.getpid()), key


@functools.lru_cache(maxsize=64)
def _store(root: str, limits: Limits, process: int) -> Store:
    """One for each bucket, so that connections are used again; not across a fork, where their threads are gone."""
    return Store(root, limits)


class Store:
    """One bucket.

    Args:
        root: its URL.
        limits: how long it is waited for.
    """

    def __init__(self, root: str, limits: Limits) -> None:
        self.root = root
        self._limits = limits
        self._inner = self._connect()

    def _connect(self) -> ObjectStore:
        try:
            from obstore.store import MemoryStore, from_url
        except ImportError:
            raise MissingExtra(
                f"`{shown(self.root)}`: object stores need obstore; pip install 'holdfast[remote]'", file=self.root
            ) from None
        if self.root.startswith("memory://"):
            return MemoryStore()
        limits, second = self._limits, datetime.timedelta(seconds=1)
        options: dict[str, Any] = {"timeout": limits.answer * second, "connect_timeout": limits.connect * second}
        with self.reported("", "opening the store"):
            return from_url(
                self.root,
                retry_config={
                    "max_retries": limits.retries,
                    "retry_timeout": limits.seconds * second,
                    "backoff": {"init_backoff": limits.first * second, "max_backoff": 10 * second, "base": 2},
                },
                client_options=cast("Any", options | _client_options(self.root, os.environ)),
            )

    def url(self, key: str) -> str:
        """The URL of a key."""
        return f"{self.root}/{key}" if key else self.root

    # -- reading -------------------------------------------------------------------------------------------------------

    def head(self, key: str) -> Meta | None:
        """What the store knows of an object; None when there is none, or no such bucket: the answer has no words."""
        import obstore

        try:
            return _meta(self._call(key, "asking for it", lambda: obstore.head(self._inner, key)))
        except NotFound:
            return None

    def get(self, key: str, limit: int) -> tuple[bytes, Meta]:
        """All bytes of a small object. Raises NotFound, and RefusedFile when it has more than ``limit``."""
        import obstore

        def read() -> tuple[bytes, Meta]:
            found = obstore.get(self._inner, key)
            meta = _meta(found.meta)
            if meta.size > limit:
                name = self.url(key)
                raise RefusedFile(
                    f"`{shown(name)}`: has {meta.size:,} bytes, at most {limit:,} are read for this file", file=name
                )
            return bytes(found.bytes()), meta

        return self._call(key, "reading", read)

    def begin(self, key: str, meta: Meta, begin: int, end: int) -> Iterator[memoryview]:
        """Asks for the bytes from ``begin`` to ``end`` of the object that ``meta`` tells of, and of no later one.

        Returns:
            The bytes as they arrive. A connection that breaks meanwhile is a StorageError of this iterator.

        Raises:
            NotFound: it is gone.
            StorageError: it was replaced since, or the store does not answer.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {"range": (begin, end)}
        options |= {"if_match": meta.tag} if meta.tag else {"if_unmodified_since": meta.modified}
        try:
            with self.reported(key, f"reading at byte {begin:,}", passed=(PreconditionError,)):
                found = obstore.get(self._inner, key, options=options)
        except PreconditionError as error:
            url = self.url(key)
            raise StorageError(
                f"`{shown(url)}`: was replaced after it was opened; open it again", file=url, offset=begin
            ) from error
        return self._arriving(key, found, begin)

    def _arriving(self, key: str, found: Any, begin: int) -> Iterator[memoryview]:
        with self.reported(key, f"reading at byte {begin:,}"):
            for chunk in found.stream(min_chunk_size=_ARRIVING):
                yield memoryview(chunk)

    def _listed(self, key: str) -> tuple[list[str], dict[str, int]]:
        import obstore

        found = self._call(key, "listing", lambda: obstore.list_with_delimiter(self._inner, key or None))
        skip = len(key) + 1 if key else 0
        folders = sorted(one[skip:].rstrip("/") for one in found["common_prefixes"])
        return folders, {one["path"][skip:]: one["size"] for one in found["objects"]}

    def list(self, key: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the objects directly in a folder, each sorted; none when it is empty."""
        folders, objects = self._listed(key)
        return folders, sorted(objects)

    def sizes(self, key: str) -> dict[str, int]:
        """The objects directly in a folder and their bytes."""
        return self._listed(key)[1]

    def walk(self, key: str) -> Iterator[str]:
        """The keys of all objects below a folder, however deep."""
        import obstore

        with self.reported(key, "listing"):
            for chunk in obstore.list(self._inner, key or None):
                yield from (one["path"] for one in chunk)

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces an object, in one request."""
        import obstore

        self._call(key, "writing", lambda: obstore.put(self._inner, key, data, use_multipart=False))

    def create(self, key: str, data: bytes) -> Meta | None:
        """Writes an object unless there is one; None when there is. The store decides, for all who ask at once."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self.reported(key, "creating", passed=(AlreadyExistsError, PreconditionError)):
                return _put(data, obstore.put(self._inner, key, data, mode="create", use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return None

    def swap(self, key: str, data: bytes, meta: Meta) -> Meta | None:
        """Replaces an object if it still is the one that ``meta`` tells of; None when it is not."""
        import obstore
        from obstore.exceptions import PreconditionError

        known = {"e_tag": meta.tag, "version": meta.version}
        mode: Any = {name: value for name, value in known.items() if value is not None}
        try:
            with self.reported(key, "replacing", passed=(PreconditionError, FileNotFoundError)):
                return _put(data, obstore.put(self._inner, key, data, mode=mode, use_multipart=False))
        except (PreconditionError, FileNotFoundError):
            return None

    def upload(self, key: str, size: int, blocks: Iterable[bytes]) -> None:
        """Writes a large object in parts; it appears with the last one. What fails is aborted, and nothing appears.

        Args:
            key: where.
            size: bytes in all.
            blocks: them, in order.
        """
        import obstore

        part = max(PART, -(-size // _MOST_PARTS))
        if size <= PART:
            return self.put(key, b"".join(blocks))
        with self.reported(key, "uploading"):
            obstore.put(self._inner, key, iter(blocks), chunk_size=part, max_concurrency=PARALLEL)
        return None

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are gone already are no error."""
        import obstore

        wanted = list(keys)
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            try:
                with self.reported(some[0], "removing", passed=(FileNotFoundError,)):
                    obstore.delete(self._inner, some)
            except FileNotFoundError:
                if len(some) > 1:  # a store that stops at the first one that is gone
                    for one in some:
                        self.delete([one])

    # -- errors --------------------------------------------------------------------------------------------------------

    def _call(self, key: str, doing: str, call: Callable[[], Result]) -> Result:
        with self.reported(key, doing):
            return call()

    @contextmanager
    def reported(self, key: str, doing: str, *, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turns an error of the store into one of ours that says which object, what was done, and what to do."""
        from obstore.exceptions import BaseError

        try:
            yield
        except passed:
            raise
        except (FileNotFoundError, BaseError, OSError, ValueError) as error:
            raise self._error(key, doing, error) from error

    def _error(self, key: str, doing: str, error: Exception) -> NotFound | StorageError | ArgumentError:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        url, text = self.url(key), str(error)
        if "NoSuchBucket" in text or "ContainerNotFound" in text or "The specified bucket does not exist" in text:
            return NotFound(f"`{shown(url)}`: there is no bucket `{shown(self.root)}`; create it first", file=url)
        if isinstance(error, FileNotFoundError):
            return NotFound(f"`{shown(url)}`: no such object", file=url)
        if not isinstance(error, BaseError | OSError):
            return ArgumentError(f"`{shown(url)}`: {doing} failed: {_reason(text)}", file=url)
        advice = ""
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if refused or "169.254.169.254" in text or "metadata" in text or "redential" in text:
            advice = "; check the credentials and what they allow: " + _CREDENTIALS
        return StorageError(f"`{shown(url)}`: {doing} failed: {_reason(text)}{advice}", file=url)


_CREDENTIALS = "obstore takes them from the environment (AWS_..., GOOGLE_..., AZURE_...) or from the machine's own role"
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "http1_only",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "timeout",
    "user_agent",
)
"""What obstore calls them, and with AWS_, GOOGLE_ or AZURE_ before it, the environment."""
_REASON = 300


def _client_options(root: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of connections; obstore would forget it all beside any option of ours."""
    scheme = root.partition(":")[0]
    prefix = "AWS_" if scheme.startswith("s3") else "GOOGLE_" if scheme == "gs" else "AZURE_"
    named = {name: environment.get(prefix + name.upper()) for name in _CLIENT_OPTIONS}
    return {name: value for name, value in named.items() if value}


def _reason(text: str) -> str:
    """What an error of obstore says, on one line: its first paragraph, without markup."""
    line = " ".join(text.split("Debug source")[0].split())
    message = re.search(r"<Code>([^<]*)</Code>\s*<Message>([^<]*)</Message>", line)
    line = line.split("<?xml")[0].rstrip(" :")
    return shown(f"{line[:_REASON]}{f' ({message[1]}: {message[2]})' if message else ''}")


def _meta(found: Any) -> Meta:
    return Meta(found["size"], found.get("e_tag"), found.get("version"), found["last_modified"])


def _put(data: bytes, found: Any) -> Meta:
    return Meta(len(data), found.get("e_tag"), found.get("version"))
