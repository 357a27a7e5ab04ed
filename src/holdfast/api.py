"""What users call: save, load, restore, build, open, verify, diff, convert, export, quantize, summary, snapshot."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any, Literal

from torch import nn

from holdfast.errors import ArgumentError, UntrustedType
from holdfast.export.building import build_model
from holdfast.export.exporting import ExportOptions, export_any
from holdfast.export.quantize import quantize as quantize
from holdfast.export.quantize import quantize_report as quantize_report
from holdfast.export.report import ExportReport
from holdfast.formats.convert import ConvertReport, convert_container
from holdfast.formats.writing import format_for, shown_name
from holdfast.policy.policies import Exact as Exact
from holdfast.policy.policies import Policy
from holdfast.policy.policies import Warm as Warm
from holdfast.policy.report import LoadReport
from holdfast.runs.opening import open_any
from holdfast.runs.sizes import parse_cut
from holdfast.runs.verify import VerifyReport
from holdfast.runs.verify import verify as verify_bytes
from holdfast.serialization.devices import MapLocation, Placement
from holdfast.serialization.reading import read_tree
from holdfast.transfer.comparing import diff as diff
from holdfast.transfer.comparing import measured as measured
from holdfast.transfer.opened import Opened, is_source, opened_document
from holdfast.transfer.rescue import rescue_state, untrusted, write_rescued
from holdfast.transfer.restore import RestoreOptions, restore_objects
from holdfast.transfer.save import Saved, document_of, save_file
from holdfast.transfer.summary import Summary, summarise

FileLike = str | os.PathLike[str] | IO[bytes]


def save(
    obj: Any,
    f: FileLike,
    *,
    format: Literal["pt", "safetensors", "npz", "torch-legacy"] | None = None,  # noqa: A002
    config: Any = None,
    probe: Any = None,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> Saved:
    """Saves any nesting of modules, optimizers, tensors and plain values to one file, all or nothing.

    The file appears complete or not at all, and what was there before stays until then. A ``.pt`` is read by plain
    ``torch.load``, a ``.safetensors`` by plain safetensors.

    Args:
        obj: dicts, lists and tuples of tensors, plain values and objects with ``state_dict``; or one of these alone.
        f: a path, a URL (``s3://bucket/net.pt``) or a binary file object. Missing folders are created.
        format: ``pt``, ``safetensors``, ``npz`` (arrays only) or ``torch-legacy`` (the stream before torch 1.6); by
            default by suffix: ``.safetensors``, ``.npz``, and ``pt`` for any other.
        config: plain data with which the model is constructed, recorded for ``build``. Found without being given when
            the class is decorated with ``record_config``, is a dataclass, or has a ``config`` attribute.
        probe: an example input of the model (a tensor, or a tuple of arguments, at most 1 MiB). Its answer is kept in
            the file, and ``build`` and ``restore`` ask again and say whether it is still the same.
        metadata: strings of your own, by name.
        durable: wait until the file would survive a power cut (fsync).

    Returns:
        What was written: file, format, tensors, bytes, seconds and notes.

    Raises:
        UnsupportedValue: a value that can't be stored; names its path in the tree and its type.
        StorageError: the disk is full or read-only, or ``f`` is a folder; what was there before is intact.
        ArgumentError: an unknown format, or something that is no destination.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> holdfast.save({"model": net, "epoch": 3}, "checkpoints/net.pt").tensors
        2
    """
    name = format_for(f, format)
    return save_file(obj, f, name=name, metadata=metadata, config=config, probe=probe, durable=durable)


def load(f: FileLike, map_location: MapLocation = None, *, trusted: Collection[str] = (), opaque: bool = False) -> Any:
    """Loads the whole tree of a file; never runs code from it.

    Every byte is checked against its digest or CRC where the file has one.

    Args:
        f: a path, a reference (``runs/a@best``) or a binary file object.
        map_location: None (where it was saved, else the CPU), a device or its name, ``"auto"``, a dict from saved to
            wanted locations, or a callable (storage, location).
        trusted: full names of classes that may be rebuilt, ``{"my.pkg.Config"}``.
        opaque: give inert ``holdfast.Opaque`` placeholders for objects of other classes instead of refusing the file.

    Returns:
        The tree that was saved; objects are their ``state_dict``.

    Raises:
        NotFound: no such file, run or checkpoint.
        FormatError: the file is damaged, hostile, or of a kind that is not read.
        UntrustedType: it holds objects of classes that were not named.
        DeviceUnavailable: ``map_location`` names a device that is not here.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"w": torch.ones(2), "epoch": 3}, "tree.pt")
        >>> holdfast.load("tree.pt")["epoch"]
        3
    """
    placement = Placement(map_location)
    with open_any(f) as container:
        tree = container.document().tree
        try:
            return read_tree(tree, shown_name(f), placement=placement, trusted=frozenset(trusted), opaque=opaque)
        except UntrustedType as first:
            raise untrusted(tree, shown_name(f), trusted) or first from None


def restore(
    f: Any,
    *,
    match: Policy = Exact(),  # noqa: B008  (frozen, and the default that users should see)
    at: Mapping[str, str] | None = None,
    mode: Literal["eval", "train"] | None = None,
    hyper: Literal["file", "mine"] = "file",
    spare: bool = False,
    dry_run: bool = False,
    **objects: Any,
) -> LoadReport:
    """Gives live objects the state of a file, all or nothing, straight into the memory that they have.

    It finds each object's part in files of any tutorial: under its own name, under ``NAME_state_dict``, or, for the
    only model, optimizer or scheduler, where tutorials put them. All is decided from headers and every digest is
    verified before a live object changes.

    Args:
        f: a path, a reference (``runs/a@best``), a binary file object, or a tree in memory.
        match: what may differ: ``holdfast.Exact()`` wants every key and shape, ``holdfast.Warm(...)`` takes what fits.
        at: where an object's part is, ``{"model": "net.encoder"}``, when it is not found by itself.
        mode: put the restored modules into ``"eval"`` or ``"train"`` mode; the report says which mode they are in.
        hyper: whose learning rate and options an optimizer goes on with: the ``"file"``'s or ``"mine"``.
        spare: keep a copy of the old weights while reading, to roll back; the file is then read once, not twice.
        dry_run: only report.
        **objects: modules, optimizers, schedulers and others by name; None means "not this one".

    Returns:
        What was loaded, what else is in the file, and its plain values: ``report.values["epoch"]``.

    Raises:
        MissingPart, AmbiguousPart: no part, or several, fit an object; says what the file has.
        MismatchError: names or shapes differ; nothing was changed.
        CorruptFile: a digest differs; nothing was changed.
        RestoreIncomplete: reading failed after the verification; names what may be half written.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> saved = holdfast.save({"model_state_dict": net.state_dict(), "epoch": 3}, "old.pt")
        >>> holdfast.restore("old.pt", model=net, mode="eval").values["epoch"]
        3
    """
    if not any(value is not None for value in objects.values()):
        raise ArgumentError("restore needs an object to restore into, such as model=net; to get a tree back, use load")
    options = RestoreOptions(match=match, at=at, mode=mode, hyper=hyper, spare=spare, dry_run=dry_run)
    with opened_document(f) as (document, file):
        return restore_objects(document, file, objects, options)


def build(
    f: FileLike,
    map_location: MapLocation = None,
    *,
    factory: Callable[..., nn.Module] | None = None,
    trusted: Collection[str] = (),
    mode: Literal["eval", "train"] = "eval",
) -> Any:
    """Constructs a model and gives it the weights of a file.

    Without a factory it makes models that consist of torch.nn's own layers (a Sequential, say), out of files that
    ``save`` or ``torch.save`` wrote. A model that ``quantize`` made is constructed as the float one that it was, and
    quantized again as the file says. A ``.pt2`` gives its module, when its program was audited and holds nothing but
    operators on tensors. No class is ever imported because a file names it.

    Args:
        f: a path, a reference or a binary file object.
        map_location: a device or ``"auto"``; None leaves the model where ``factory`` makes it.
        factory: the class, or a function that returns a module; called with the config that the file records. It can
            be left out when all of the model is torch.nn's own.
        trusted: full names of classes that may be imported, ``{"my.pkg.Net"}``: when the class that the file names is
            among them, it is the factory. ``{"torch.jit.ScriptModule"}`` lets a TorchScript file run.
        mode: ``"eval"`` or ``"train"``; the program of a ``.pt2`` stays in the mode in which it was exported.

    Returns:
        The module.

    Raises:
        ArgumentError: no factory was given and one is needed, or it does not take the recorded config.
        ConfigMissing: the factory needs arguments and the file records none.
        MismatchError: the weights do not fit what the factory made.
        RefusedFile: a program that is not known to be harmless, or TorchScript that is not trusted; says what to do.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> saved = holdfast.save(net, "net.pt", config={"in_features": 2, "out_features": 1})
        >>> holdfast.build("net.pt", factory=torch.nn.Linear).training
        False
    """
    return build_model(f, map_location, factory=factory, trusted=trusted, mode=mode).model


def open(f: FileLike) -> Opened:  # noqa: A001  (holdfast.open, as in gzip.open)
    """Opens a file lazily: headers are read, tensors only when asked for.

    Args:
        f: a path, a reference or a binary file object.

    Returns:
        A context manager and mapping: ``.format``, ``.metadata``, ``.keys()``, ``ckpt["model.fc.weight"].spec`` and
        ``.read()``.

    Raises:
        NotFound, FormatError: as in ``load``.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"model": torch.nn.Linear(2, 1)}, "net.pt")
        >>> with holdfast.open("net.pt") as ckpt:
        ...     ckpt.keys()
        ['model.weight', 'model.bias']
    """
    container = open_any(f)
    try:
        return Opened(container, shown_name(f))
    except BaseException:
        container.close()
        raise


def verify(ref: str | os.PathLike[str]) -> VerifyReport:
    """Reads every byte of a file, checkpoint or run and checks it against its digest or CRC.

    Args:
        ref: a path or a reference.

    Returns:
        A report: OK, CORRUPT (tensor and bytes named) or NOT VERIFIABLE for each part.

    Raises:
        NotFound: no such file, run or checkpoint.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"w": torch.ones(2)}, "w.pt")
        >>> holdfast.verify("w.pt").status
        'OK'
    """
    return verify_bytes(ref)


def convert(
    src: FileLike,
    dst: FileLike,
    *,
    format: Literal["pt", "safetensors", "npz", "torch-legacy"] | None = None,  # noqa: A002
    drop: Collection[str] = (),
    shards: int | str | None = None,
) -> ConvertReport:
    """Writes the tree of one file as another, reads it again, and proves every value and every bit equal.

    The source is verified first; tensors are streamed, so memory stays small; ``dst`` is replaced if the proof holds.

    Args:
        src: a path, a reference (``runs/a@best``) or a binary file object, of any format that is read.
        dst: a path or a binary file object; with ``shards`` the path of a folder.
        format: as in ``save``.
        drop: what to leave out, as globs of dotted paths: ``["optimizer*"]``. What the new format can't hold must be
            named here, or nothing is written.
        shards: writes a folder of so many safetensors files (``4``), or of files below a size (``"5GB"``), with an
            index that transformers reads; a tensor is never cut. None writes one file.

    Returns:
        What was written, and what is shared, renamed and dropped in it.

    Raises:
        UnsupportedValue: lists what the new format can't hold.
        ArgumentError: a glob that matches nothing, an unknown format, or fewer tensors than shards.
        NotFound, FormatError: as in ``load``.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"w": torch.ones(2), "epoch": 3}, "w.pt")
        >>> holdfast.convert("w.pt", "w.npz", drop=["epoch"]).tensors
        1
    """
    with open_any(src) as container:
        return convert_container(container, dst, format=format, drop=list(drop), cut=parse_cut(shards))


def export(
    model: nn.Module | FileLike,
    path: str | os.PathLike[str],
    *,
    example: Any = None,
    format: Literal["onnx", "torch-export", "torchscript", "torchscript-script", "torchscript-trace"] | None = None,  # noqa: A002
    dynamic: Mapping[str | int, Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    factory: Callable[..., nn.Module] | None = None,
    trusted: Collection[str] = (),
    tolerance: float | None = None,
) -> ExportReport:
    """Writes a model for another runtime, opens it there, and proves that it gives the same answers.

    What was written is run in a fresh process by onnxruntime, ``torch.export`` or ``torch.jit``, on the example and on
    fresh inputs, also of other sizes, and compared with the model in eval mode. Only then does the file take its
    place. The model, its mode and the random state are left as they were.

    Args:
        model: a live module, wrapped or not, or what ``build`` takes: a path, a reference or a binary file object.
        path: where the file goes. Missing folders are created.
        example: a tensor, a tuple of positional arguments, or a dict of keyword arguments of ``forward``. A file that
            was saved with ``probe=`` has one.
        format: by default by suffix: ``onnx`` (.onnx), ``torch-export`` (.pt2), ``torchscript`` (.ts: script, and
            trace where script does not take the model). ``torchscript-script`` and ``torchscript-trace`` do only that.
        dynamic: axes whose size is left open, by input: ``{"input": {0: "batch"}}``, or ``{"input": {0}}``.
        input_names: names of the inputs, in order; by default those of the parameters of ``forward``.
        output_names: names of the outputs, in order; by default ``output``, or the keys of a dict.
        factory: for a file, as in ``build``.
        trusted: for a file, as in ``build``.
        tolerance: how far an output may be off, over its largest value; by default 1e-7 for float64, 1e-4 for float32,
            1e-2 for float16, 4e-2 for bfloat16 and 0 for integers.

    Returns:
        What was written and how near its answers are; ``print`` it.

    Raises:
        MismatchError: the file answers otherwise, or fails where the model does not; what was there before is intact.
        UnsupportedValue: the exporter does not take the model, or the model answers at random.
        ArgumentError: no example, or one that ``forward`` does not take; a wrong name, axis or format.
        MissingExtra: ONNX needs packages that are not installed: ``pip install "holdfast[export]"``.
        NotFound, FormatError, ConfigMissing: as in ``build``.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> report = holdfast.export(net, "net.ts", example=torch.randn(2, 4))
        >>> report.how, report.worst.is_same
        ('script', True)
    """
    options = ExportOptions(example, format, dynamic, input_names, output_names, tolerance)
    return export_any(model, path, options, factory=factory, trusted=trusted)


def rescue(f: FileLike, map_location: MapLocation = None, *, at: str | None = None) -> dict[str, Any]:
    """Gives the state_dict out of a file that holds a whole pickled module, without its class and running nothing.

    Args:
        f: a path or a binary file object.
        map_location: as in ``load``.
        at: the dotted path of one module, or of a part of one, such as ``model.encoder``.

    Returns:
        The state_dict; where the file holds several modules and ``at`` is not given, one for each dotted path.

    Raises:
        MissingPart: the file holds no whole module, or none at ``at``.
        RefusedFile: the module holds packed parameters or other objects that only its own class can read; named.
        NotFound, FormatError: as in ``load``.

    Example:
        >>> import holdfast, torch
        >>> torch.save(torch.nn.Linear(2, 1), "whole.pt")
        >>> list(holdfast.rescue("whole.pt"))
        ['weight', 'bias']
    """
    return rescue_state(f, Placement(map_location), at)


def rescue_file(f: FileLike, dst: FileLike, *, at: str | None = None) -> Saved:
    """Writes what ``rescue`` gives as a file, tensor by tensor, verified on the way.

    Args:
        f: a path or a binary file object.
        dst: a path or a binary file object; by suffix ``.safetensors`` or a torch file.
        at: as in ``rescue``.

    Returns:
        What was written.

    Raises:
        MissingPart, RefusedFile: as in ``rescue``.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import torch
        >>> from holdfast.api import rescue_file
        >>> torch.save(torch.nn.Linear(2, 1), "whole.pt")
        >>> rescue_file("whole.pt", "weights.safetensors").tensors
        2
    """
    return write_rescued(f, dst, at)


def summary(obj: Any) -> Summary:
    """What a module, an optimizer, a tree or a file holds: names, shapes, dtypes, devices, sharing, param_groups.

    Args:
        obj: a live object, a tree in memory, or a path, reference or binary file object.

    Returns:
        A Summary; print it, or use its fields.

    Raises:
        NotFound, FormatError: as in ``load``, when ``obj`` is a file.

    Example:
        >>> import holdfast, torch
        >>> holdfast.summary(torch.nn.Linear(2, 1)).tensors[0].name
        'weight'
    """
    if is_source(obj):
        with opened_document(obj) as (document, file):
            return summarise(obj, document, file)
    return summarise(obj, document_of(obj, row_major=False)[0], type(obj).__name__)


def snapshot(obj: Any) -> Any:
    """A true copy of an object's state in memory: training on does not change it.

    Unlike ``state_dict().copy()``, no tensor is shared with the live object; tied tensors stay tied in the copy.

    Args:
        obj: a module, or any tree that ``save`` takes.

    Returns:
        The tree, for ``restore(tree, model=net)`` or ``save(tree, "best.pt")``.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> best = holdfast.snapshot(net)
        >>> _ = net.weight.data.zero_()
        >>> bool(best["weight"].any())
        True
    """
    document, _ = document_of(obj, row_major=False)
    return read_tree(document.tree, "snapshot")
