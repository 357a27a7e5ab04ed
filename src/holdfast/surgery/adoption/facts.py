"""What one file of an old folder says: read once, verified, and let go of again."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from holdfast.errors import AmbiguousPart, HoldfastError, MissingPart
from holdfast.formats.base import Container, StoredTensor
from holdfast.formats.damage import verify_segments
from holdfast.formats.packing import can_gather, tensor_bytes
from holdfast.formats.scan import scan
from holdfast.policy.names import without_wrappers
from holdfast.runs.catalog import is_run
from holdfast.runs.layout import MANIFEST
from holdfast.runs.opening import open_any
from holdfast.spec import TensorSpec
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted, printable
from holdfast.storage.digest import digest_bytes
from holdfast.storage.places import names_in
from holdfast.surgery.adoption.names import Named, natural_key, read_name
from holdfast.surgery.adoption.parts import Laid, lay_out
from holdfast.surgery.adoption.values import (
    Loops,
    Values,
    find_values,
    is_trained,
    loops_of,
    monitored,
    optimizer_steps,
    scheduler_epoch,
)
from holdfast.transfer.locate import find_part

_SAMPLE = 4096
_BLOCK = 1 << 20
Tensors = dict[str, StoredTensor]


class OldFile(msgspec.Struct, frozen=True):
    """What is known of one file, without its tensors.

    Attributes:
        name: in the old folder.
        size: bytes.
        problem: why it can't be taken over; None when nothing is wrong with it.
        named: what its name says.
        values: what its values say.
        loops: where Lightning's loops stood, in a file of Lightning.
        modules: keys of models' states.
        optimizers: keys of optimizers' states.
        schedulers: keys of schedulers' states.
        others: keys of other objects' states.
        plain: keys of everything else.
        optimizer_step: steps by the optimizer's own count.
        scheduler_epoch: steps by the scheduler's.
        trained: whether an optimizer has state.
        weights: the same text in two files means the same weights.
        best_named: the file that this one calls the best so far.
        notes: for people.
    """

    name: str
    size: int = 0
    problem: str | None = None
    named: Named = Named()
    values: Values = Values()
    loops: Loops | None = None
    modules: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    optimizer_step: int | None = None
    scheduler_epoch: int | None = None
    trained: bool = False
    weights: str | None = None
    best_named: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def resumes(self) -> bool:
        """Whether a training can go on from it: it holds a model and an optimizer."""
        return self.problem is None and bool(self.modules and self.optimizers)

    @property
    def role(self) -> Literal["best", "last"] | None:
        """What its name says it is."""
        return self.named.role


def read_folder(folder: str, tell: Callable[[str], None] | None = None) -> list[OldFile]:
    """The facts of everything in a folder, in the order of the numbers in the names.

    Args:
        folder: the old one; nothing in it is changed.
        tell: called with each name before it is read.

    Raises:
        NotFound: there is no such folder.
        StorageError: it can't be listed.
    """
    found = []
    for name in sorted(names_in(folder), key=natural_key):
        if tell is not None:
            tell(name)
        found.append(read_file(folder, name))
    return _confirmed(folder, found)


def read_file(folder: str, name: str) -> OldFile:
    """The facts of one file; what is wrong with it is one of them."""
    path, named = os.path.join(folder, name), read_name(name)
    try:
        status = os.stat(path)
        problem = _no_file(path, status.st_mode)
        if problem is not None:
            return OldFile(name, problem=problem, named=named)
        with open_any(path) as container:
            return _facts(container, name, status.st_size, named)
    except OSError as reason:
        return OldFile(name, problem=f"can't be read: {reason.strerror}", named=named)
    except HoldfastError as reason:
        return OldFile(name, problem=_briefly(str(reason), path), named=named)
    except RecursionError:
        return OldFile(name, problem="is nested too deep to be read from here", named=named)


def _no_file(path: str, mode: int) -> str | None:
    if stat.S_ISDIR(mode):
        run = is_run(path) or os.path.lexists(os.path.join(path, MANIFEST))
        return "is a run of holdfast, or a checkpoint of one, already" if run else None
    return None if stat.S_ISREG(mode) else "is a FIFO, socket or device"


def _briefly(message: str, path: str) -> str:
    """A message without the path that it begins with: the row of the report names the file."""
    return message.removeprefix(f"`{printable(path)}`: ")


def _facts(container: Container, name: str, size: int, named: Named) -> OldFile:
    document = container.document()
    laid = lay_out(document)
    problem = _dangers(container) or _unusable(laid, named)
    if problem is not None or laid is None:
        return OldFile(name, size, problem=problem, named=named)
    unverified = verify_segments(container.segments())
    container.check(document)
    parts = laid.document.tree
    states = [parts[key] for key in laid.optimizers]
    metrics, best_named = monitored(document.tree)
    values = find_values(parts, laid.objects)
    steps = {optimizer_steps(state) for state in states}
    counters = {scheduler_epoch(parts[key]) for key in laid.schedulers}
    return OldFile(
        name,
        size,
        named=named,
        values=msgspec.structs.replace(values, metrics={**named.metrics, **metrics, **values.metrics}),
        loops=loops_of(document.tree),
        modules=laid.modules,
        optimizers=laid.optimizers,
        schedulers=laid.schedulers,
        others=laid.others,
        plain=tuple(key for key in parts if key not in laid.objects),
        optimizer_step=steps.pop() if len(steps) == 1 else None,
        scheduler_epoch=counters.pop() if len(counters) == 1 else None,
        trained=any(map(is_trained, states)),
        weights=_sampled(weights_of(laid)),
        best_named=best_named,
        notes=(*laid.notes, *_said(laid, container.file, unverified)),
    )


def _dangers(container: Container) -> str | None:
    """What loading the file with pickle would call that runs code; nothing of it is run here."""
    if not os.path.isfile(container.file) or not container.format.startswith("torch"):
        return None
    report = scan(container.file)
    names = [one.name for pickle in report.pickles for one in pickle.names if one.verdict == "dangerous"]
    if not names:
        return None
    return (
        f"would run code if it were unpickled ({printable(names[0][:100])}): `holdfast scan` lists it; nothing was run"
    )


def _unusable(laid: Laid | None, named: Named) -> str | None:
    if laid is None:
        return "is no dict with names for keys, as a checkpoint is"
    if laid.modules:
        return (
            "is one of several files of a model, without an optimizer" if named.shard and not laid.optimizers else None
        )
    objects = [f"`{printable(key)}` is a pickled {printable(name[:100])}" for key, name in laid.inert.items()]
    if objects:
        return f"holds no state_dict of a model: {', '.join(objects[:3])}, which is not rebuilt"
    return "holds an optimizer and no model" if laid.optimizers else "holds no state_dict of a model"


def _said(laid: Laid, file: str, unverified: int) -> Iterator[str]:
    if unverified:
        yield f"{unverified:,} tensors carry no digest and could not be verified"
    for key, name in laid.inert.items():
        yield f"`{printable(key)}` holds a {printable(name[:100])}, which is kept and not rebuilt"
    for kind, found in (("module", laid.modules), ("optimizer", laid.optimizers)):
        name = "model" if kind == "module" else kind
        if len(found) == 1 or not found:
            continue
        try:
            find_part(laid.document.tree, name, kind, kinds={name: kind}, at=None, file=file)
        except (AmbiguousPart, MissingPart):
            shown = ", ".join(f"{printable(key)}=" for key in found)
            yield f"holds several {name}s: give the run each under its key, {shown}"


# -- the same weights


def weights_of(laid: Laid) -> Tensors:
    """The tensors of a checkpoint's models by name, without what wrappers add; of several models with their key."""
    tree, several = laid.document.tree, len(laid.modules) > 1
    return {
        f"{key}.{name}" if several else name: leaf
        for key in laid.modules
        for path, leaf in leaves(tree[key])
        for name in [without_wrappers(dotted(path))]
        if isinstance(leaf, StoredTensor)
    }


def _sampled(tensors: Mapping[str, StoredTensor]) -> str:
    """A digest of names, specs, and the ends of each tensor: equal weights have equal ones, others hardly ever."""
    text = bytearray()
    for name in sorted(tensors):
        leaf = tensors[name]
        text += repr((name, leaf.spec.dtype, leaf.spec.shape)).encode("utf-8", "backslashreplace")
        if _comparable(leaf):
            source = tensor_bytes(leaf)
            length = min(_SAMPLE, source.size)
            text += source.read(0, length) + source.read(source.size - length, length)
    return digest_bytes(bytes(text))


def _comparable(leaf: StoredTensor) -> bool:
    return leaf.spec.numel > 0 and (leaf.spec.is_contiguous or can_gather(leaf.spec))


def _confirmed(folder: str, files: Sequence[OldFile]) -> list[OldFile]:
    """Files with equal samples are compared to the last bit; one that differs after all gets a text of its own."""
    first: dict[str, OldFile] = {}
    found = []
    for file in files:
        known = first.setdefault(file.weights or "", file)
        if known is file or file.weights is None or _same_weights(folder, known.name, file.name):
            found.append(file)
        else:
            found.append(msgspec.structs.replace(file, weights=f"{file.weights}/{file.name}"))
    return found


def _same_weights(folder: str, one: str, other: str) -> bool:
    with open_any(os.path.join(folder, one)) as left, open_any(os.path.join(folder, other)) as right:
        sides = [lay_out(container.document()) for container in (left, right)]
        here, there = (weights_of(laid) if laid is not None else {} for laid in sides)
        return here.keys() == there.keys() and all(_equal(here[name], there[name]) for name in here)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    kinds = [TensorSpec(leaf.spec.dtype, leaf.spec.shape) for leaf in (one, other)]
    if kinds[0] != kinds[1] or not one.spec.numel:
        return kinds[0] == kinds[1]
    if not (_comparable(one) and _comparable(other)):
        return False
    here, there = tensor_bytes(one), tensor_bytes(other)
    sizes = range(0, here.size, _BLOCK)
    return all(
        here.read(at, min(_BLOCK, here.size - at)) == there.read(at, min(_BLOCK, here.size - at)) for at in sizes
    )
