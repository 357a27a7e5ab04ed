"""Which file of an old folder becomes which step of a run, and why: decided from facts alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from holdfast.runs.layout import MAX_STEP
from holdfast.runs.run_file import BestRule
from holdfast.state.paths import printable
from holdfast.surgery.adoption.counting import (
    Convention,
    Numbering,
    Place,
    decide_convention,
    decide_numbering,
    epoch_said,
    place_of,
    step_said,
)
from holdfast.surgery.adoption.facts import OldFile
from holdfast.surgery.adoption.names import is_best_so_far
from holdfast.surgery.adoption.values import EpochIs

_WEIGHTS = (
    "holds weights and no optimizer: a training can't go on from it. start_from= begins a run with its weights; "
    "--weights-only takes such files as steps too"
)
_NOWHERE = "neither its contents nor its name say an epoch or a step; give a copy of it a name such as NAME_epoch_10"


class Wishes(msgspec.Struct, frozen=True):
    """What the caller says.

    Attributes:
        best: which step is the best one.
        epoch_is: what an epoch in the files is; None to find out.
        steps_per_epoch: None to find out.
        weights_only: whether files without an optimizer become steps as well.
    """

    best: BestRule | None = None
    epoch_is: EpochIs | None = None
    steps_per_epoch: int | None = None
    weights_only: bool = False


class PlannedStep(msgspec.Struct, frozen=True):
    """One step of the run.

    Attributes:
        file: its file in the old folder.
        step: its number.
        epoch: the epoch to go on with; None when that is not known.
        batch: batches of that epoch that are done.
        metrics: by name.
        pins: names under which it stays.
        notes: for people.
    """

    file: OldFile
    step: int
    epoch: int | None = None
    batch: int = 0
    metrics: dict[str, float] = {}
    pins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class LeftOut(msgspec.Struct, frozen=True):
    """A file that becomes no step.

    Attributes:
        file: its name.
        reason: why.
    """

    file: str
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """What becomes of an old folder.

    Attributes:
        steps: in their order.
        left_out: every other file.
        notes: what was decided, and why.
    """

    steps: tuple[PlannedStep, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


def plan_adoption(files: Sequence[OldFile], wishes: Wishes) -> Plan:
    """Decides what becomes of each file.

    Args:
        files: the facts of all, in the order of their names.
        wishes: what the caller says.
    """
    usable = [file for file in files if file.resumes or (wishes.weights_only and file.problem is None)]
    ordinary = [file for file in usable if file.role != "best"] or usable
    convention = decide_convention(ordinary, wishes.epoch_is, wishes.steps_per_epoch)
    places = {file.name: place_of(file, convention) for file in files if file.problem is None}
    numbering = decide_numbering(ordinary, places, wishes.steps_per_epoch)
    planning = _Planning(places, numbering)
    for file in files:
        if file.problem is not None:
            planning.leave(file, file.problem)
    planning.place(ordinary)
    others = [file for file in files if file.problem is None and file not in ordinary]
    planning.place_best([file for file in others if file.role == "best"])
    for file in others:
        if file.role != "best":
            planning.leave(file, _WEIGHTS)
    return planning.plan([file.name for file in files], _decided(planning, convention, numbering, wishes))


def _decided(planning: _Planning, convention: Convention, numbering: Numbering, wishes: Wishes) -> list[str]:
    steps = planning.steps.values()
    if not steps:
        return []
    notes = [str(convention)] if any(_is_open(one.file) for one in steps) else []
    if any(one.file.loops is not None for one in steps):
        notes.append("the epochs of Lightning's files are where its loops stood")
    return [*notes, numbering.why]


def _is_open(file: OldFile) -> bool:
    """Whether the convention decides where a file stands."""
    named = file.values.epoch.means if file.values.epoch is not None else None
    return file.loops is None and named is None and epoch_said(file) is not None


class _Planning:
    """Steps as they are placed.

    Args:
        places: where each file stands, by name.
        numbering: how steps are numbered.
    """

    def __init__(self, places: Mapping[str, Place], numbering: Numbering) -> None:
        self._places = places
        self._numbering = numbering
        self.steps: dict[int, PlannedStep] = {}
        self._left: dict[str, str] = {}

    def leave(self, file: OldFile, reason: str) -> None:
        """A file becomes no step."""
        self._left[file.name] = reason

    def place(self, files: Sequence[OldFile]) -> None:
        """Files become steps; of two at one place the fuller one does, or the first by name."""
        best = [file.name for file in files if file.role == "best"]
        for file in sorted(files, key=_preference):
            step = self._numbering.step_of(file, self._places[file.name])
            if step is None or step > MAX_STEP:
                self.leave(file, _NOWHERE)
                continue
            there = self.steps.get(step)
            if there is None:
                self._add(file, step, pins=(_pin(file.name, best),) if file.name in best else ())
            elif there.file.weights == file.weights:
                self.leave(file, f"has the same weights at the same place as {printable(there.file.name)}")
            else:
                self.leave(
                    file,
                    f"stands at step {step} like {printable(there.file.name)}, with other weights; adopt it from a "
                    "folder of its own",
                )

    def place_best(self, files: Sequence[OldFile]) -> None:
        """The best files: a pin on the step with the same weights, else a step of their own."""
        for file in sorted(files, key=lambda file: (not file.resumes, _preference(file))):
            pin = _pin(file.name, files)
            same = self._same(file)
            if same is not None:
                self._pin(same.step, pin)
                self.leave(
                    file, f"has the same weights as {printable(same.file.name)}: step {same.step} is pinned as {pin}"
                )
            elif not self.steps:
                self.leave(file, _WEIGHTS)
            else:
                self._place_best(file, pin)

    def _place_best(self, file: OldFile, pin: str) -> None:
        newest = max(self.steps)
        wanted = self._numbering.step_of(file, self._places[file.name])
        if wanted is not None and wanted not in self.steps and (file.resumes or wanted < newest):
            self._add(file, wanted, pins=(pin,))
            return
        start = min(newest if wanted is None else wanted, newest)
        free = 0 if wanted is None and 0 not in self.steps else _free_below(start, self.steps)
        if free is None:
            self.leave(file, "is none of the steps, and no number below the newest is free for it")
            return
        why = "where it stood in the training is not known" if wanted is None else f"step {wanted} is taken or too late"
        self._add(
            file, free, pins=(pin,), notes=(f"{why}: kept as step {free}",), place=Place(self._places[file.name].epoch)
        )

    def _add(
        self,
        file: OldFile,
        step: int,
        *,
        pins: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        place: Place | None = None,
    ) -> None:
        place = place or self._within(self._places[file.name], step)
        told = (*file.notes, *_disagreements(file), *_about(file, place), *notes)
        self.steps[step] = PlannedStep(file, step, place.epoch, place.batch, dict(file.values.metrics), pins, told)

    def _within(self, place: Place, step: int) -> Place:
        """The place in an epoch that a step which is no multiple of an epoch's has."""
        rate = self._numbering.per_epoch
        if place.batch or rate is None or self._numbering.source != "said" or place.step is None or step % rate == 0:
            return place
        return Place(step // rate, step % rate, place.step)

    def _same(self, file: OldFile) -> PlannedStep | None:
        """The step with the weights of a file: the one at its own epoch, else the newest."""
        same = [one for one in self.steps.values() if file.weights is not None and one.file.weights == file.weights]
        at = self._places[file.name].epoch
        return max(same, key=lambda one: (one.epoch == at and at is not None, one.step), default=None)

    def _pin(self, step: int, pin: str) -> None:
        one = self.steps[step]
        self.steps[step] = msgspec.structs.replace(one, pins=(*one.pins, pin))

    def plan(self, names: Sequence[str], notes: Iterable[str]) -> Plan:
        """What was decided, in order."""
        self._pin_told()
        steps = _own_metrics([self.steps[step] for step in sorted(self.steps)])
        left = tuple(LeftOut(name, self._left[name]) for name in names if name in self._left)
        return Plan(tuple(steps), left, tuple(notes))

    def _pin_told(self) -> None:
        """Pins what the newest file calls the best so far, when no file is called so by its name."""
        if any(one.pins for one in self.steps.values()):
            return
        told = next(
            (one.file.best_named for _, one in sorted(self.steps.items(), reverse=True) if one.file.best_named), None
        )
        for step, one in self.steps.items():
            if told is not None and one.file.name == told:
                self._pin(step, "best")


def _preference(file: OldFile) -> tuple[bool, int, bool]:
    """Of files at one place: what resumes, then what holds more, then what is not called ``last``."""
    return not file.resumes, -len(file.optimizers) - len(file.schedulers) - len(file.plain), file.role is not None


def _free_below(start: int, taken: Mapping[int, object]) -> int | None:
    return next((step for step in range(start - 1, max(start - 2 - len(taken), -1), -1) if step not in taken), None)


def _pin(name: str, bests: Sequence[object]) -> str:
    """``best``; of several best files each has its own name, ``best_acc`` of ``best_acc.pth``."""
    if len(bests) == 1:
        return "best"
    return re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"(\.(pth|pt|ckpt|tar|bin))+$", "", name))[:100] or "best"


def _disagreements(file: OldFile) -> list[str]:
    """Where the contents and the name of a file say different things."""
    said, named = file.values.epoch, file.named
    notes = []
    number = named.epoch if named.epoch is not None else named.number
    if said is not None and number is not None and number not in (said.value, step_said(file), file.optimizer_step):
        notes.append(f"`{printable(said.key)}` is {said.value}, the name says {number}: the contents count")
    step = file.values.step
    if step is not None and named.step is not None and named.step != step.value:
        notes.append(f"`{printable(step.key)}` is {step.value}, the name says {named.step}: the contents count")
    return notes


def _about(file: OldFile, place: Place) -> list[str]:
    notes = []
    if not file.resumes:
        notes.append("weights alone: nothing of an optimizer")
    if place.epoch is None:
        notes.append("the epoch is not known: a run counts from 0")
    if place.batch:
        notes.append(
            f"in the middle of epoch {place.epoch}, after {place.batch} batches: the order of the data is not in it"
        )
    if file.values.epoch is None and epoch_said(file) is not None and file.loops is None:
        notes.append("the epoch is by the name")
    return notes


def _own_metrics(steps: Sequence[PlannedStep]) -> list[PlannedStep]:
    """A best value so far belongs to the step where it first appears: later ones repeat it and did not reach it."""
    before: dict[str, float] = {}
    found = []
    for one in steps:
        own = {
            name: value for name, value in one.metrics.items() if not is_best_so_far(name) or before.get(name) != value
        }
        before.update(one.metrics)
        found.append(msgspec.structs.replace(one, metrics=own))
    return found
