"""How an old training counted its epochs and steps: decided from what the files say, with reasons. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from holdfast.surgery.adoption.facts import OldFile
from holdfast.surgery.adoption.values import EpochIs

_OTHERWISE = {"done": "--epoch-is next", "next": "--epoch-is done"}
_MEANS = {
    "done": "the number of the epoch just done, counted from 0",
    "next": "the number of epochs done, which is that of the next one counted from 0",
}
Counter = Callable[[OldFile], int | None]


class Convention(msgspec.Struct, frozen=True):
    """What the number of an epoch in the files is.

    Attributes:
        epoch_is: ``done`` or ``next``.
        why: for people.
    """

    epoch_is: EpochIs
    why: str

    @property
    def offset(self) -> int:
        """Epochs done, less the number that a file says."""
        return 1 if self.epoch_is == "done" else 0

    def __str__(self) -> str:
        return f"an epoch in the files is {_MEANS[self.epoch_is]}: {self.why}"


class Place(msgspec.Struct, frozen=True):
    """Where a training stood when it wrote a file.

    Attributes:
        epoch: epochs that were done; None when that is not known.
        batch: batches of the next epoch that were done.
        step: batches since the training began; None when nothing says.
    """

    epoch: int | None = None
    batch: int = 0
    step: int | None = None


def epoch_said(file: OldFile) -> int | None:
    """The number of an epoch in a file, or else in its name."""
    if file.values.epoch is not None:
        return file.values.epoch.value
    if file.named.epoch is not None:
        return file.named.epoch
    number = file.named.number
    return None if number in (None, *_steps_said(file)) else number


def step_said(file: OldFile) -> int | None:
    """The step that a file says it is at, or else its name."""
    if file.loops is not None and file.loops.step is not None:
        return file.loops.step
    if file.values.step is not None:
        own, said = file.optimizer_step, file.values.step
        within = not said.overall and own is not None and own > said.value  # a place in an epoch, not in the training
        return file.named.step if within else said.value
    if file.named.step is not None:
        return file.named.step
    return file.named.number if file.named.number in _steps_said(file) else None


def _steps_said(file: OldFile) -> tuple[int, ...]:
    """Numbers that are steps, so that a bare number in a name that is one of them is no epoch."""
    said = file.values.step
    found = (said.value if said else None, file.loops.step if file.loops else None, file.optimizer_step)
    return tuple(one for one in found if one is not None)


# -- what the number of an epoch is


def decide_convention(files: Sequence[OldFile], wished: EpochIs | None, per_epoch: int | None) -> Convention:
    """Whether the epoch in the files is the one just done or the next one.

    Args:
        files: those that a training can go on from.
        wished: what the caller says it is; None to find out.
        per_epoch: steps of an epoch, where the caller says.
    """
    if wished is not None:
        return Convention(wished, "as asked for")
    open_ = [file for file in files if file.loops is None and not (file.values.epoch and file.values.epoch.means)]
    for find in (_by_counters, _by_scheduler, _by_names, _by_first):
        found = find(open_, per_epoch)
        if found is not None:
            return Convention(found[0], f"{found[1]}; {_OTHERWISE[found[0]]} says otherwise")
    return Convention(
        "done", "nothing in the files tells, and most programs write it so; --epoch-is next says otherwise"
    )


def _by_counters(files: Sequence[OldFile], per_epoch: int | None) -> tuple[EpochIs, str] | None:
    """By a count of steps that grows evenly with the epochs."""
    counters: tuple[tuple[str, Counter], ...] = (
        ("the optimizer", lambda file: file.optimizer_step),
        ("the step in the files", step_said),
    )
    for name, counter in counters:
        points = _points(files, counter)
        grown = per_epoch or _growth(points)
        offsets = {count / grown - epoch for epoch, count in points} if grown else set()
        if offsets in ({0.0}, {1.0}):
            return "done" if offsets == {1.0} else "next", f"{name} counts {grown:,} steps an epoch and fits that"
    return None


def _points(files: Iterable[OldFile], counter: Counter) -> set[tuple[int, int]]:
    found = ((epoch_said(file), counter(file)) for file in files)
    return {(epoch, count) for epoch, count in found if epoch is not None and count}


def _growth(points: set[tuple[int, int]]) -> int | None:
    """Steps an epoch, where they are the same everywhere."""
    ordered = sorted(points)
    pairs = list(itertools.pairwise(ordered))
    if not pairs or any(one[0] == other[0] for one, other in pairs):
        return None
    rates = {(other[1] - one[1]) / (other[0] - one[0]) for one, other in pairs}
    rate = rates.pop()
    return int(rate) if not rates and rate > 0 and rate.is_integer() else None


def _by_scheduler(files: Sequence[OldFile], _: int | None) -> tuple[EpochIs, str] | None:
    """By a scheduler that was stepped once an epoch."""
    points = _points(files, lambda file: file.scheduler_epoch)
    offsets = {count - epoch for epoch, count in points}
    if offsets == {1}:
        return "done", "the scheduler was stepped once more than it says"
    if offsets == {0}:
        return "next", "the scheduler was stepped as often as it says"
    return None


def _by_names(files: Sequence[OldFile], _: int | None) -> tuple[EpochIs, str] | None:
    """By names that differ from the contents by one, in every file."""
    pairs = [(_number_in_name(file), file.values.epoch) for file in files]
    offsets = {number - said.value for number, said in pairs if number is not None and said is not None}
    if offsets == {1}:
        return "done", "the names of the files are one higher"
    if offsets == {-1}:
        return "next", "the names of the files are one lower"
    return None


def _number_in_name(file: OldFile) -> int | None:
    if file.named.epoch is not None:
        return file.named.epoch
    return None if file.named.number in _steps_said(file) else file.named.number


def _by_first(files: Sequence[OldFile], _: int | None) -> tuple[EpochIs, str] | None:
    if any(epoch_said(file) == 0 and file.trained for file in files):
        return "done", "there is an epoch 0 with a trained optimizer"
    return None


# -- where each file stands


def place_of(file: OldFile, convention: Convention) -> Place:
    """Where the training stood, as far as one file says."""
    if file.loops is not None:
        return Place(file.loops.epochs, file.loops.batch, step_said(file))
    said = epoch_said(file)
    if said is None:
        return Place(step=step_said(file))
    means = file.values.epoch.means if file.values.epoch is not None else None
    offset = convention.offset if means is None else int(means == "done")
    return Place(said + offset, step=step_said(file))


class Numbering(msgspec.Struct, frozen=True):
    """How the steps of a run are numbered.

    Attributes:
        source: ``said``, ``optimizer``, ``given`` or ``epoch``.
        per_epoch: steps of an epoch, where they are known.
        why: for people.
    """

    source: str
    per_epoch: int | None
    why: str

    def step_of(self, file: OldFile, place: Place) -> int | None:
        """The number of one file's step; None when nothing gives it one."""
        if self.source == "epoch":
            return place.epoch
        own = {"said": place.step, "optimizer": file.optimizer_step}.get(self.source)
        if own is not None or place.epoch is None or self.per_epoch is None:
            return own
        return place.epoch * self.per_epoch + place.batch


def decide_numbering(files: Sequence[OldFile], places: Mapping[str, Place], per_epoch: int | None) -> Numbering:
    """Where the numbers of the steps come from: one source for all files, so that they stay in order.

    Args:
        files: those that become steps, the best ones left out.
        places: by file name.
        per_epoch: steps of an epoch, where the caller says.
    """
    said = {file.name: places[file.name].step for file in files}
    numbering = _complete("said", said, files, places, per_epoch, "as the files say")
    if numbering is not None:
        return numbering
    if per_epoch is not None:
        return Numbering("given", per_epoch, f"steps: {per_epoch:,} an epoch, as asked for")
    counted = {file.name: file.optimizer_step for file in files}
    why = "as the optimizer counts its own, in place of batches; --steps-per-epoch says otherwise"
    numbering = _complete("optimizer", counted, files, places, None, why)
    if numbering is not None:
        return numbering
    why = "numbered by epoch: how many batches an epoch has is not known; --steps-per-epoch says it"
    return Numbering("epoch", None, f"steps: {why}")


def _complete(
    source: str,
    steps: Mapping[str, int | None],
    files: Sequence[OldFile],
    places: Mapping[str, Place],
    per_epoch: int | None,
    why: str,
) -> Numbering | None:
    """A numbering, if a source gives every file a step and the steps grow with the epochs."""
    if not any(step is not None for step in steps.values()):
        return None
    rate = per_epoch or _rate([(places[name], step) for name, step in steps.items() if step is not None])
    numbering = Numbering(source, rate, f"steps: {why}" + (f" ({rate:,} an epoch)" if rate else ""))
    numbers = [(places[file.name].epoch, numbering.step_of(file, places[file.name])) for file in files]
    if any(step is None for _, step in numbers):
        return None
    ordered = sorted((epoch, step) for epoch, step in numbers if epoch is not None and step is not None)
    grows = all(one[1] < other[1] for one, other in itertools.pairwise(ordered) if one[0] < other[0])
    return numbering if grows else None


def _rate(known: Sequence[tuple[Place, int]]) -> int | None:
    """Steps an epoch, where every file that stands at the end of one has the same."""
    whole = [(place.epoch, step) for place, step in known if place.epoch and not place.batch]
    rates = {step / epoch for epoch, step in whole if epoch}
    rate = rates.pop() if len(rates) == 1 else 0.0
    return int(rate) if rate >= 1 and rate.is_integer() else None
