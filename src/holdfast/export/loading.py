"""Files that hold programs, back to modules: ``torch.export`` archives after an audit, TorchScript when trusted.

Of a ``.pt2`` torch is never given the file. It gets an archive that is written here, in memory, from what the audit
read: the JSON encoded anew, the bytes of the tensors, and sample inputs that were read without unpickling and saved
again. So what torch reads is what was looked at, whatever changes on the disk meanwhile.
"""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import torch
from torch import nn

from holdfast.errors import ArgumentError, CorruptFile, HoldfastError, RefusedFile
from holdfast.formats.base import Container
from holdfast.formats.exported import Exported
from holdfast.formats.programs.audit import Audit
from holdfast.formats.programs.schema import Node, Payloads
from holdfast.formats.programs.text import AUTOCAST
from holdfast.formats.programs.values import Device
from holdfast.formats.torchscript import TorchScript
from holdfast.serialization.devices import MapLocation, Placement
from holdfast.serialization.reading import read_tree
from holdfast.state.paths import printable
from holdfast.storage.source import shown

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
log = logging.getLogger("holdfast")

SCRIPT_CLASSES = ("torch.jit.ScriptModule", "torch.jit.RecursiveScriptModule")
"""What ``trusted`` may have to say that a TorchScript file's code may run."""
_RECORD_LIMIT = 1 << 62
_REASON = 300
_LOGGERS = ("torch.export", "torch._export.serde.serialize")


def holds_program(container: Container) -> bool:
    """Whether a file holds a program, of which a module can be made without a factory."""
    return isinstance(container, Exported | TorchScript)


def load_program(container: Container, map_location: MapLocation, trusted: Collection[str], *, mode: str) -> nn.Module:
    """The module of a file for which ``holds_program`` is true.

    Args:
        container: the opened file.
        map_location: a device, its name or ``"auto"``; None leaves every tensor where it was saved, when that is here.
        trusted: names; one of ``SCRIPT_CLASSES`` lets TorchScript run.
        mode: ``"eval"`` or ``"train"``.

    Raises:
        RefusedFile: a part of the program is not known to be harmless, or it is TorchScript that is not trusted.
        ArgumentError: ``mode="train"`` for a program of torch.export, or a map_location of another form.
        CorruptFile: torch can't load it.
    """
    if not isinstance(map_location, str | torch.device | None):
        raise ArgumentError("build's map_location takes a device, its name or 'auto'; a module lives in one place")
    if isinstance(container, TorchScript):
        return _scripted(container, map_location, trusted, mode=mode)
    if not isinstance(container, Exported):
        raise ArgumentError(f"`{shown(container.file)}`: holds no program")
    if mode == "train":
        raise ArgumentError(
            f"`{shown(container.file)}`: a program of torch.export is in the mode in which it was exported and can't "
            'be put into mode="train"; to train, give the class: build(..., factory=Net, mode="train")'
        )
    return _exported(container, Placement(map_location))


# -- torch.export


def _exported(container: Exported, placement: Placement) -> nn.Module:
    audit = container.audit()
    audit.refuse_findings()
    data = rebuilt(container, audit, placement)
    if training := _trains(audit.program):
        log.warning(
            "%s: the program was exported in training mode (%s): its answers may be random", shown(audit.file), training
        )
    logged: list[BaseException] = []
    try:
        with _quiet(logged):
            return torch.export.load(io.BytesIO(data)).module()
    except Exception as reason:  # whatever torch raises for JSON that fits the schema and makes no sense
        raise CorruptFile(
            f"`{shown(container.file)}`: nothing in its program is harmful, but torch {torch.__version__} can't load "
            f"it: {_told([*logged, reason][0])}; it was written by torch {_version(audit)}",
            file=container.file,
        ) from reason


def rebuilt(container: Exported, audit: Audit, placement: Placement) -> bytes:
    """An archive for torch with what was audited and nothing else, its tensors on the devices of ``placement``."""
    program, weights, constants = audit.program, audit.weights, audit.constants
    if audit.findings or program is None or weights is None or constants is None:
        raise RefusedFile(f"`{shown(container.file)}`: was not audited", file=container.file)
    for device in _structs([program, weights, constants], Device):
        placed = placement.device(device.location)
        device.type, device.index = placed.type, placed.index
    for node in _structs(program, Node):
        if node.target == AUTOCAST and type(kind := node.inputs[0].arg.as_string) is str:
            node.inputs[0].arg.as_string = placement.device(kind).type
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, content: bytes | bytearray | memoryview) -> None:
            archive.writestr(zipfile.ZipInfo(f"program/{name}"), content)

        put("archive_format", b"pt2")
        put("archive_version", b"0")
        put("byteorder", b"little")
        put(".data/version", b"6\n")
        put("models/model.json", msgspec.json.encode(program))
        put("data/sample_inputs/model.pt", _samples(audit, placement))
        for part, payloads in (("weights", weights), ("constants", constants)):
            put(f"data/{part}/model_{part}_config.json", msgspec.json.encode(payloads))
            for name, content in _tensors(container, part, payloads, placement):
                put(name, content)
    return target.getvalue()


def _tensors(container: Exported, part: str, payloads: Payloads, placement: Placement) -> Iterator[tuple[str, bytes]]:
    """The records of the tensors: bytes as they are; what is pickled is read as any file and saved again."""
    pickled = {payload.path_name: payload.use_pickle for payload in payloads.config.values()}
    for file_name, is_pickled in pickled.items():
        record = f"data/{part}/{file_name}"
        if is_pickled:
            yield record, _saved(read_tree(container.pickled(record), container.file, placement=placement))
        else:
            yield record, container.archive.read(record, limit=_RECORD_LIMIT)


def _samples(audit: Audit, placement: Placement) -> bytes:
    return b"" if audit.samples is None else _saved(read_tree(audit.samples, audit.file, placement=placement))


def _saved(value: Any) -> bytes:
    target = io.BytesIO()
    torch.save(value, target)
    return target.getvalue()


def _structs(value: Any, kind: type[_Struct]) -> Iterator[_Struct]:
    """Every value of one kind in a program, whatever it is in."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, kind):
            yield one
        if isinstance(one, msgspec.Struct):
            todo.extend(getattr(one, name) for name in one.__struct_fields__)
        elif type(one) is list:
            todo.extend(reversed(one))
        elif type(one) is dict:
            todo.extend(one.values())


def _trains(program: Any) -> str:
    """The first operator that was exported in training mode: a dropout, or a norm that learns; empty without one."""
    flags = ("train", "training")
    return next(
        (
            node.target
            for node in _structs(program, Node)
            if any(one.name in flags and one.arg.as_bool is True for one in node.inputs)
        ),
        "",
    )


@contextmanager
def _quiet(logged: list[BaseException]) -> Iterator[None]:
    """Keeps torch from logging and warning what is raised, or is of no use to who loads a program.

    What it logs as the reason, before it raises another error that does not have it, is added to ``logged``.
    """

    def drop(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            logged.append(record.exc_info[1])
        return record.levelno > logging.WARNING

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for one in loggers:
        one.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")
            yield
    finally:
        for one in loggers:
            one.removeFilter(drop)


def _told(reason: BaseException) -> str:
    """What torch said first: it wraps its reasons in others and in whole tracebacks."""
    seen: BaseException = reason
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    lines = [line for line in str(seen).splitlines() if line.strip()] or [""]
    return printable(f"{type(seen).__name__}: {lines[0][:_REASON]}")


def _version(audit: Audit) -> str:
    version = audit.program.torch_version if audit.program is not None else ""
    return printable(version) or "of an unknown version"


# -- TorchScript


def _scripted(
    container: TorchScript, map_location: str | torch.device | None, trusted: Collection[str], *, mode: str
) -> nn.Module:
    file = container.file
    if not set(trusted) & set(SCRIPT_CLASSES):
        raise RefusedFile(
            f"`{shown(file)}`: is a TorchScript program, which is code that can't be audited: it is not run unless you "
            f"trust where the file comes from and say so: build(..., trusted={{{SCRIPT_CLASSES[0]!r}}}). load, open "
            "and inspect read its weights and run nothing; build(..., factory=Net) puts them into your own class",
            file=file,
        )
    device: torch.device | None = None
    if map_location is not None or not torch.accelerator.is_available():
        device = Placement(map_location).device("cpu")
    source = container.archive.source
    try:
        with warnings.catch_warnings():  # torch 2.13 calls torch.jit deprecated, which the caller can't change here
            warnings.filterwarnings("ignore", message=r"`?torch\.jit", category=DeprecationWarning)
            data = io.BytesIO(source.read(0, source.size))
            module: nn.Module = torch.jit.load(data, map_location=device)  # type: ignore[no-untyped-call]
            return module.train(mode == "train")
    except HoldfastError:
        raise
    except Exception as reason:  # whatever its reader raises
        raise CorruptFile(
            f"`{shown(file)}`: torch {torch.__version__} can't load this TorchScript program: {_told(reason)}",
            file=file,
        ) from reason
