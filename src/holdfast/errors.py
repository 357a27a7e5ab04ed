"""Every error that holdfast raises on purpose.

::

    HoldfastError                 catch this one to catch them all
     ├─ FormatError               a file is not what it claims to be
     │   ├─ UnknownFormat         nothing here reads it: a web page, a git-lfs pointer, another program's file
     │   ├─ CorruptFile           bytes are missing, or differ from their digest, CRC or length
     │   └─ RefusedFile           reading on would run code, or break a limit
     ├─ NotFound                  no such file, run, checkpoint or part
     │   └─ MissingPart           the file has no part for an object that was asked for
     ├─ MismatchError             file and live object disagree; nothing was changed
     │   └─ AmbiguousPart         several parts fit one object; say which with at=
     ├─ UnsupportedValue          this value can't be stored; its path in the tree is named
     ├─ SnapshotTorn              a tensor changed while a background save read it; that save was not committed
     ├─ UntrustedType             the file holds a class that the caller did not name in trusted=
     ├─ ArgumentError             the call itself is wrong
     │   └─ ConfigMissing         the file does not say how to construct its model
     └─ MachineError              disk, permissions, locks: the file may be fine
         ├─ StorageError          reading or writing failed: disk full, read-only, I/O error
         │   └─ RestoreIncomplete the machine failed while live objects were being written; says which
         ├─ RunLocked             another process writes this run
         ├─ DeviceUnavailable     a device was asked for by name and is not here
         └─ MissingExtra          an optional package is not installed

Each carries what a program needs as attributes: ``file``, ``path`` (in the tree), ``offset`` (byte in the file) and
``step``, each None when it does not apply. ``exit_code`` is what the command line exits with.
"""

from __future__ import annotations


class HoldfastError(Exception):
    """The base of every error that holdfast raises on purpose.

    Args:
        message: what is wrong, both sides of it, and what to do; one line where possible.
        file: the file or folder concerned, as the caller named it.
        path: dotted path in the tree, such as ``model.fc.weight``.
        offset: byte offset in ``file``.
        step: the checkpoint's step, for errors of a run.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        path: str | None = None,
        offset: int | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.path = path
        self.offset = offset
        self.step = step


class FormatError(HoldfastError):
    """A file is not what it claims to be."""


class UnknownFormat(FormatError):
    """Nothing here reads this file."""


class CorruptFile(FormatError):
    """Bytes are missing, or differ from their digest, CRC or length."""


class RefusedFile(FormatError):
    """Reading on would run code from the file, or break a limit."""


class NotFound(HoldfastError):
    """No such file, run, checkpoint or part."""

    exit_code = 4


class MissingPart(NotFound):
    """The file has no part for an object that was asked for."""


class MismatchError(HoldfastError):
    """File and live object disagree; nothing was changed.

    ``report`` is the LoadReport or ExportReport with every difference, where there is one.
    """

    exit_code = 1
    report: object | None = None


class AmbiguousPart(MismatchError):
    """Several parts of the file fit one object."""


class UnsupportedValue(HoldfastError):
    """A value can't be stored."""


class SnapshotTorn(HoldfastError):
    """A tensor changed while a background save read it; that save was not committed."""


class UntrustedType(HoldfastError):
    """The file holds a class that the caller did not name in ``trusted=``."""


class ArgumentError(HoldfastError):
    """The call itself is wrong."""

    exit_code = 3


class ConfigMissing(ArgumentError):
    """The file does not say how to construct its model."""


class MachineError(HoldfastError):
    """Disk, permissions, locks, devices or packages: the file may be fine."""

    exit_code = 5


class StorageError(MachineError):
    """Reading or writing failed in the operating system."""


class RestoreIncomplete(StorageError):
    """The machine failed while live objects were being written; the message names what was touched."""


class RunLocked(MachineError):
    """Another process writes this run."""


class DeviceUnavailable(MachineError):
    """A device was asked for by name and is not here."""


class MissingExtra(MachineError):
    """An optional package is not installed; the message says the install line."""
