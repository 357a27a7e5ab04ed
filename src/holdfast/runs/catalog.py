"""What is in a run's folder, and what follows from it: which step to resume, which is best. Reads no tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from holdfast.errors import FormatError, NotFound, StorageError
from holdfast.runs.layout import (
    LOCK_FILE,
    MANIFEST,
    QUARANTINE,
    REASON,
    RUN_FILE,
    SUPERSEDED,
    parse_leftover,
    parse_step,
    step_name,
    step_of_moved,
)
from holdfast.runs.manifest import Manifest, read_manifest, read_small
from holdfast.runs.run_file import BestRule
from holdfast.state.encoding import loads
from holdfast.storage.places import is_folder, is_there, names_in, place_of

_REASON_LIMIT = 64 << 10
_AT_ONCE = 8
"""Manifests of a store that are read at a time."""


class Listed(msgspec.Struct, frozen=True):
    """One step folder.

    Attributes:
        step: by its name.
        path: the folder.
        manifest: what it is; None when it can't be trusted.
        problem: why not, for people; None when it can.
    """

    step: int
    path: str
    manifest: Manifest | None = None
    problem: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all its files but the manifest, as the manifest says; 0 when there is none."""
        return sum(record.size for record in self.manifest.files.values()) if self.manifest else 0


class Catalog(msgspec.Struct, frozen=True):
    """The contents of a run's folder.

    Attributes:
        root: the folder.
        checkpoints: every step folder, ordered by step.
        partial: steps whose save or deletion did not finish.
        quarantined: names of steps that failed verification.
        superseded: names of steps of a future that was left.
    """

    root: str
    checkpoints: tuple[Listed, ...] = ()
    partial: tuple[int, ...] = ()
    quarantined: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()

    @property
    def readable(self) -> tuple[Listed, ...]:
        """The checkpoints whose manifest is good, ordered by step."""
        return tuple(one for one in self.checkpoints if one.manifest is not None)

    @property
    def size(self) -> int:
        """What all its checkpoints hold, as their manifests say, each in full: files that they share count again."""
        return sum(one.size for one in self.checkpoints)

    def find(self, step: int) -> Listed | None:
        """The checkpoint of that step, readable or not."""
        return next((one for one in self.checkpoints if one.step == step), None)


class Choice(msgspec.Struct, frozen=True):
    """Which step a run goes on from.

    Attributes:
        step: None when there is none to go on from.
        reasons: for people, the decision first, then what was passed over.
        stops: whether a training stops here: all that there was is damaged, and beginning anew would hide it.
    """

    step: int | None
    reasons: tuple[str, ...]
    stops: bool = False


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a run: it has a run.json or a step, or the first of them is being written."""
    path = os.fspath(folder)
    if is_there(os.path.join(path, RUN_FILE)):
        return True
    try:
        names = names_in(path)
    except (NotFound, StorageError):
        return False
    return names == [LOCK_FILE] or any(
        parse_step(name) is not None or parse_leftover(name) is not None or name.startswith(f".{RUN_FILE}.")
        for name in names
    )


def newest_step(root: str | os.PathLike[str]) -> int | None:
    """The highest step that has a folder, by names alone; None when there is none.

    In a store it is the highest one with a manifest: other files may be left of one that was never committed.

    Raises:
        NotFound: there is no such folder.
        StorageError: it can't be read.
    """
    path = os.fspath(root)
    steps = sorted((step for name in names_in(path) if (step := parse_step(name)) is not None), reverse=True)
    whole = place_of(path).whole
    return next((one for one in steps if whole or is_there(os.path.join(path, step_name(one), MANIFEST))), None)


def scan(root: str | os.PathLike[str]) -> Catalog:
    """Lists a run's folder. Names that are no run's are passed over.

    Raises:
        NotFound: there is no such folder.
        StorageError: it can't be read.
    """
    path = os.fspath(root)
    names = names_in(path)
    steps = sorted(step for name in names if (step := parse_step(name)) is not None)
    by_step = {parse_step(name): name for name in names}
    paths = {step: os.path.join(path, by_step[step]) for step in steps}
    quarantined, superseded = _moved(path, QUARANTINE, names), _moved(path, SUPERSEDED, names)
    if place_of(path).whole:
        listed = [_listed(paths[step], step) for step in steps]
        checkpoints = tuple(one for one in listed if one.manifest or is_there(one.path))  # else pruned meanwhile
        partial = tuple(sorted(step for name in names if (step := parse_leftover(name)) is not None))
    else:
        checkpoints = tuple(_listed_far(paths))
        partial = _unfinished(steps, checkpoints, (*quarantined, *superseded))
    return Catalog(path, checkpoints, partial, quarantined, superseded)


def choose_resume(catalog: Catalog) -> Choice:
    """The newest checkpoint whose manifest is good; newer damaged ones are named in the reasons."""
    passed = [one for one in catalog.checkpoints if one.manifest is None]
    partial = [f"step {step} was never committed" for step in catalog.partial]
    if not catalog.readable and (passed or catalog.quarantined):
        quarantined = [f"{name} is in {QUARANTINE}/" for name in catalog.quarantined]
        stop = "no checkpoint can be read: a training stops here, it does not begin anew"
        return Choice(None, (stop, *_problems(passed), *quarantined, *partial), stops=True)
    if not catalog.readable:
        return Choice(None, ("no checkpoint yet: a fresh start", *partial))
    chosen = catalog.readable[-1]
    count = len(catalog.readable)
    first = f"step {chosen.step} is the newest of {count} checkpoint{'s' if count > 1 else ''}"
    return Choice(chosen.step, (first, *_problems([one for one in passed if one.step > chosen.step]), *partial))


def best(checkpoints: Sequence[Listed], rule: BestRule) -> Listed | None:
    """The checkpoint with the best value of a metric; None when none has it.

    NaN is never best, 0.0 is a value like any other, and of equal values the later step wins.
    """
    ranked = by_metric(checkpoints, rule)
    return ranked[0] if ranked else None


def beaten(checkpoints: Sequence[Listed], rules: Sequence[BestRule], metrics: Mapping[str, float]) -> list[BestRule]:
    """The rules by which new metrics are at least as good as those of every checkpoint; NaN beats nothing."""
    found = []
    for rule in rules:
        value, top = metrics.get(rule.metric), best(checkpoints, rule)
        old = None if top is None else metric_of(top, rule.metric)
        if value is None or value != value:
            continue
        if old is None or (value <= old if rule.mode == "min" else value >= old):
            found.append(rule)
    return found


def by_metric(checkpoints: Sequence[Listed], rule: BestRule) -> list[Listed]:
    """The checkpoints that have a value of the metric, best first."""
    valued = [(value, one) for one in checkpoints if (value := metric_of(one, rule.metric)) is not None]
    sign = 1.0 if rule.mode == "min" else -1.0
    return [one for _, one in sorted(valued, key=lambda item: (sign * item[0], -item[1].step))]


def metric_of(one: Listed, metric: str) -> float | None:
    """The value of a metric that is a number; NaN counts as none."""
    value = one.manifest.metrics.get(metric) if one.manifest else None
    return None if value is None or value != value else value


def read_reason(root: str | os.PathLike[str], name: str) -> str:
    """Why the quarantined folder ``name`` was set aside; says so where nothing readable tells."""
    folder = os.path.join(os.fspath(root), QUARANTINE, name)
    try:
        reason = loads(read_small(folder, REASON, _REASON_LIMIT), os.path.join(folder, REASON))
    except (FormatError, NotFound, StorageError):
        reason = None
    text = reason.get("reason") if isinstance(reason, dict) else None
    return text if isinstance(text, str) else f"has no {REASON} that can be read"


def _listed_far(paths: Mapping[int, str]) -> list[Listed]:
    """The checkpoints among the steps of a run in a store, several manifests at a time: each way there costs time.

    A step without a manifest was not committed, or pruned meanwhile.
    """
    found: dict[int, Listed] = {}

    def look(step: int) -> None:
        try:
            one = _listed_or_absent(paths[step], step)
        except NotFound:
            return
        found[step] = one

    from holdfast.storage.workers import run_jobs

    run_jobs(paths, look, _AT_ONCE)
    return [found[step] for step in sorted(found)]


def _unfinished(steps: Sequence[int], checkpoints: Sequence[Listed], moved: Sequence[str]) -> tuple[int, ...]:
    """Steps of a run in a store of which a writer left files, and nothing that commits them."""
    known = {one.step for one in checkpoints} | {step_of_moved(name) for name in moved}
    return tuple(step for step in steps if step not in known)


def _moved(path: str, name: str, names: Sequence[str]) -> tuple[str, ...]:
    folder = os.path.join(path, name)
    if name not in names or not is_folder(folder):
        return ()
    return tuple(one for one in names_in(folder) if one.startswith("step-"))


def _listed(path: str, step: int) -> Listed:
    try:
        return _listed_or_absent(path, step)
    except NotFound:
        return Listed(step, path, None, f"has no {MANIFEST}: it was not committed by holdfast")


def _listed_or_absent(path: str, step: int) -> Listed:
    try:
        manifest = read_manifest(path)
    except (FormatError, StorageError) as reason:
        return Listed(step, path, None, str(reason))
    if manifest.step != step:
        problem = f"its manifest says step {manifest.step}: the folder was renamed or copied"
        return Listed(step, path, None, problem)
    return Listed(step, path, manifest)


def _problems(listed: Sequence[Listed]) -> list[str]:
    return [f"step {one.step} is passed over: {one.problem}" for one in reversed(listed)]
