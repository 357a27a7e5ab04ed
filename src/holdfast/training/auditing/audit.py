"""What is alive and stateful in a program and not in its run, said when the user asks.

A run saves what it was given. What it was not given is lost at the first restart, and nobody notices: a scaler, an
average of the weights, a counter of early stopping. ``Run.audit`` searches the program for such things. It is the only
place that does, and it runs only when it is called.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import msgspec
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from holdfast.objects.loader import LoaderPart
from holdfast.objects.module import unwrap
from holdfast.objects.stateful import class_name
from holdfast.state.paths import printable
from holdfast.training.auditing.census import Survey, attributes, home
from holdfast.training.auditing.drift import Baseline, Change
from holdfast.training.auditing.reach import Reached
from holdfast.training.saved import BUILT

Kind = Literal["module", "optimizer", "scheduler", "scaler", "loader", "generator", "object", "attribute", "buffer"]

_COUNTER = re.compile(
    r"_*(counter|wait|num_bad_epochs|bad_epochs|epochs_no_improve|no_improve\w*|early_stop\w*|val_loss_min|steps_seen|"
    r"num_updates|best|best_(score|loss|acc|accuracy|val|value|metric|fitness|so_far|epoch|step|val_\w+))"
)
"""What the classes for early stopping that people write call the numbers that they count with."""
_AVERAGE = re.compile(r"EMA|Ema(?![a-z])|Averag|SWA|(?:^|_)(?:ema|swa)(?:_|$)")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is lost at the next restart.

    Attributes:
        kind: what it is.
        name: how the program reaches it, or a name made from its class.
        type: its class, or of an attribute what was assigned.
        reason: why it matters.
        line: what to type.
    """

    kind: Kind
    name: str
    type: str
    reason: str
    line: str


class AuditReport(msgspec.Struct, frozen=True):
    """What is alive and stateful and not in the run; prints as a list.

    Attributes:
        run: the run's folder.
        findings: one for each thing, in the order of the kinds.
        notes: what a resume from the middle of an epoch can't bring back with this loader.
    """

    run: str
    findings: list[Finding]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def __str__(self) -> str:
        title = printable(self.run)
        if not self.findings:
            lines = [f"{title}: everything alive and stateful is in the run"]
        else:
            lines = [f"{title}: not in the run: {len(self.findings)}"]
        for one in self.findings:
            lines.append(f"  `{printable(one.name)}` ({printable(one.type)}): {printable(one.reason)}")
            lines.append(f"      {printable(one.line)}")
        return "\n".join([*lines, *(f"  note: {printable(note)}" for note in self.notes)])


def audit(path: str, objects: Mapping[str, Any], loader: LoaderPart | None, baseline: Baseline) -> AuditReport:
    """Searches the program; see ``Run.audit``.

    Args:
        path: the run's folder.
        objects: what the run was given, by name.
        loader: the run's loader, or None while it has none.
        baseline: of the run; what changed is told since the last audit.
    """
    changes = baseline.changes(objects)  # before the search, which looks at everything and changes nothing
    findings = [*_Search(objects, loader).findings(), *map(_changed, changes)]
    order = get_args(Kind)
    notes = loader.notes() if loader is not None else []
    return AuditReport(path, sorted(findings, key=lambda one: order.index(one.kind)), notes)


def _changed(change: Change) -> Finding:
    kind: Kind = "buffer" if change.buffer else "attribute"
    what = "a buffer with persistent=False" if change.buffer else "a plain attribute"
    value = change.now if change.before is None else f"was {change.before}, is {change.now}"
    reason = f"{what} that changed since the run began, and no state_dict holds it"
    return Finding(kind, change.name, value, reason, f'self.register_buffer("{change.attribute}", torch.tensor(...))')


class _Search:
    """One look at everything that is alive."""

    def __init__(self, objects: Mapping[str, Any], loader: LoaderPart | None) -> None:
        self._objects = objects
        self._loader = loader
        self._survey = Survey()
        # other runs of the program keep their objects themselves
        baselines = [obj for obj in self._survey.tracked if type(obj) is Baseline]
        registered = [obj for baseline in baselines for obj in baseline.registered()]
        loaders = [part.obj for part in self._survey.tracked if type(part) is LoaderPart]
        self._reached = Reached([*objects.values(), *registered], loaders)
        kinds = {cls: self._may_matter(cls) for cls in set(map(type, self._survey.tracked))}
        tracked = [obj for obj in self._survey.tracked if kinds[type(obj)]]
        unique = {id(obj): obj for obj in (*tracked, *self._survey.held)}
        self._alive = [obj for obj in unique.values() if not self._reached.covers(obj)]
        optimizers = [obj for obj in (*objects.values(), *self._alive) if issubclass(type(obj), Optimizer)]
        self._trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}

    def _may_matter(self, cls: type) -> bool:
        if home(cls).startswith("holdfast."):
            return False
        known = issubclass(cls, nn.Module | Optimizer | LRScheduler | GradScaler | DataLoader)
        return known or _has_state(cls) or self._survey.is_own(cls)

    def findings(self) -> Iterator[Finding]:
        """What is alive and not in the run, each once."""
        yield from self._modules()
        yield from self._strangers()
        for obj in self._alive:
            found = self._judge(obj)
            if found is not None:
                yield found

    def _found(self, kind: Kind, obj: Any, reason: str, line: str | None = None, default: str | None = None) -> Finding:
        name = self._survey.name_of(obj) or default or _word(type(obj))
        typed = line if line is not None else f"holdfast.Run(..., {_identifier(name)}={name})"
        return Finding(kind, name, class_name(obj).removeprefix("builtins."), reason, typed.replace("NAME", name))

    def _judge(self, obj: Any) -> Finding | None:
        """One object that is neither a module nor in the run."""
        cls = type(obj)
        if issubclass(cls, nn.Module):
            return None
        if issubclass(cls, Optimizer):
            return self._found("optimizer", obj, "its moments and learning rates are in no commit", default="optimizer")
        if issubclass(cls, LRScheduler):
            return self._found("scheduler", obj, "a resumed run begins its schedule anew", default="scheduler")
        if issubclass(cls, GradScaler):
            reason = "its scale and the count of good steps are in no commit"
            return self._found("scaler", obj, reason, default="scaler") if obj.is_enabled() else None
        if issubclass(cls, DataLoader):
            return self._loader_found(obj)
        if id(obj) in self._survey.names and (generator := self._generator(obj)) is not None:
            return generator
        return self._plain(obj)

    def _modules(self) -> Iterator[Finding]:
        modules = [obj for obj in self._alive if issubclass(type(obj), nn.Module)]
        inner = {id(part) for module in modules for part in module.modules() if part is not module}
        for module in modules:
            if id(module) in inner or unwrap(module) in BUILT:
                continue
            own = [tensor for tensor in (*module.parameters(), *module.buffers()) if not self._reached.owns(tensor)]
            reason = self._module_reason(module) if own else None
            if reason is not None:
                yield self._found("module", module, reason, default="model")

    def _module_reason(self, module: nn.Module) -> str | None:
        """Why a module's weights would be missed; None for one that only lends its weights, as a frozen teacher."""
        if issubclass(type(module), AveragedModel) or _AVERAGE.search(type(module).__name__):
            return "an average of weights: a resumed run begins it anew"
        copied = self._reached.copied(module)
        if copied is not None:
            return f"has the layout of `{copied}`: an average, a target or the best so far, which a resumed run loses"
        trains = any(id(parameter) in self._trained or parameter.grad is not None for parameter in module.parameters())
        return "is trained, and its weights are in no commit" if trains else None

    def _strangers(self) -> Iterator[Finding]:
        """Optimizers of the run that train parameters of no model in it."""
        for name, obj in self._objects.items():
            if not isinstance(obj, Optimizer):
                continue
            strange = [p for group in obj.param_groups for p in group["params"] if not self._reached.owns(p)]
            if strange:
                reason = f"{len(strange)} of its parameters belong to no model of the run: they are not saved"
                yield Finding("optimizer", name, class_name(obj), reason, "holdfast.Run(..., model=...)")

    def _loader_found(self, loader: DataLoader[Any]) -> Finding | None:
        if issubclass(type(loader.dataset), IterableDataset) or _in_order(loader):
            return None
        if self._loader is None:
            line = "for batch in run.batches(NAME): ..."
            return self._found("loader", loader, "the run does not know its place and its order", line, "loader")
        reason = "shuffles, and a run keeps the place of one loader: within an epoch this one's is lost"
        return self._found("loader", loader, reason, 'holdfast.Run(..., save="1ep")', "loader")

    def _generator(self, obj: Any) -> Finding | None:
        if isinstance(obj, torch.Generator):
            if obj is torch.default_generator or any(obj is one for one in torch.cuda.default_generators):
                return None
            fresh = torch.Generator(obj.device).manual_seed(obj.initial_seed())
            drawn = not fresh.get_state().equal(obj.get_state())
            reason = "a generator of its own: a resumed run draws its first numbers again"
            return self._found("generator", obj, reason) if drawn else None
        if _is_generator(obj):
            line = "draw from random or numpy.random, which a run keeps; or give NAME a state_dict and the run NAME"
            return self._found("generator", obj, "a resumed run draws its first numbers again", line)
        return None

    def _plain(self, obj: Any) -> Finding | None:
        """What has a state_dict and is in no commit, or counts in plain attributes."""
        cls = type(obj)
        if _has_state(cls):
            torchs = home(cls).startswith("torch.") and id(obj) not in self._survey.names
            return None if torchs else self._found("object", obj, "has a state_dict, and it is in no commit")
        if not self._survey.is_own(cls) or _is_frozen(cls):
            return None
        values = list(attributes(obj))
        line = "give NAME state_dict() and load_state_dict(), then holdfast.Run(..., WORD=NAME)"
        line = line.replace("WORD", _identifier(self._survey.name_of(obj) or _word(cls)))
        shadow = next((key for key, value in values if self._reached.shadows(value)), None)
        if shadow is not None:
            return self._found("object", obj, f"its {shadow} has the layout of a model's weights: an average?", line)
        counts = [key for key, value in values if _COUNTER.fullmatch(key) and _is_number(value)]
        if counts:
            return self._found("object", obj, f"counts in {', '.join(counts)}, which a resumed run begins anew", line)
        return None


def _has_state(cls: type) -> bool:
    return callable(getattr(cls, "state_dict", None)) and callable(getattr(cls, "load_state_dict", None))


def _in_order(loader: DataLoader[Any]) -> bool:
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return False
    return type(loader.sampler) is SequentialSampler or getattr(loader.sampler, "shuffle", True) is False


def _is_generator(obj: Any) -> bool:
    if isinstance(obj, random.Random):
        return obj is not random._inst and not isinstance(obj, random.SystemRandom)
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(obj, numpy.random.Generator | numpy.random.RandomState):
        return False
    return obj is not numpy.random.mtrand._rand


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_frozen(cls: type) -> bool:
    """Whether it is plain data that nobody counts in: a frozen dataclass, a named tuple, an enumeration."""
    return bool(getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)) or hasattr(cls, "__members__")


def _word(cls: type) -> str:
    """A name for an object that the program reaches by none: ``AveragedModel`` as ``averaged_model``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def _identifier(name: str) -> str:
    """The keyword under which to give the run what the program calls ``trainer.ema``."""
    words = re.findall(r"[A-Za-z_]\w*", name)
    return words[-1].strip("_") if words else "object"
