"""How the checkpoints of a run stand: which is best, which are pinned, and what the retention rules say of each."""

from __future__ import annotations

import datetime
import os

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, FormatError, NotFound
from holdfast.runs.catalog import Catalog, Listed, best, is_run, read_reason, scan
from holdfast.runs.history import history
from holdfast.runs.layout import QUARANTINE, RUN_FILE, SUPERSEDED, parse_step
from holdfast.runs.retention import Decision, KeepSize, Rule, parse_keep, plan_prune, with_best
from holdfast.runs.run_file import BestRule, EpochMetrics, RunFile, parse_bests, read_pins, read_run_file
from holdfast.state.paths import printable
from holdfast.storage.places import absolute

LEFT = "the run went back to an earlier step, and this is the future that it left"
"""Why a checkpoint is in ``superseded/``."""


class Rules(msgspec.Struct, frozen=True):
    """What a run says of its checkpoints.

    Attributes:
        best: which ones are best, that of ``@best`` first; empty when the run does not say.
        keep: the retention rules, those for the best included; empty when all are kept.
    """

    best: tuple[BestRule, ...] = ()
    keep: tuple[Rule, ...] = ()

    @property
    def budget(self) -> int | None:
        """The bytes up to which checkpoints stay that no other rule keeps; None without such a rule."""
        return max((rule.bytes for rule in self.keep if isinstance(rule, KeepSize)), default=None)


class Standing(msgspec.Struct, frozen=True):
    """The checkpoints of a run and what is known of each.

    Attributes:
        catalog: what is in the folder.
        rules: what the run says of them.
        best: each rule for what is best with its checkpoint, None when none has a number for it.
        pins: name to step.
        decisions: one for each step; empty without retention rules.
        notes: what could not be found out, for people.
        history: metrics of epochs that have no checkpoint, by step.
    """

    catalog: Catalog
    rules: Rules
    best: tuple[tuple[BestRule, Listed | None], ...]
    pins: dict[str, int]
    decisions: dict[int, Decision]
    notes: tuple[str, ...]
    history: tuple[EpochMetrics, ...] = ()

    def pins_of(self, step: int) -> tuple[str, ...]:
        """The names that a step is pinned as."""
        return tuple(name for name, pinned in self.pins.items() if pinned == step)

    def best_by(self, step: int) -> tuple[BestRule, ...]:
        """The rules by which a step is the best."""
        return tuple(rule for rule, top in self.best if top is not None and top.step == step)

    def verdict(self, step: int) -> tuple[str, tuple[str, ...]]:
        """What the next prune does with a step, in a word, and why."""
        decision = self.decisions.get(step)
        if decision is not None:
            return "kept" if decision.keep else "goes with the next prune", decision.reasons
        best = [f"best by {printable(str(rule))}" for rule in self.best_by(step)]
        pinned = [f"pinned as {name}" for name in self.pins_of(step)]
        return "kept", ("the run has no retention rules: all are kept", *best, *pinned)


def verdict_on(folder: str, now: datetime.datetime) -> tuple[str, tuple[str, ...]] | None:
    """What becomes of the checkpoint in ``folder``, in a word, and why; None when it is no part of a run."""
    root, name = os.path.split(absolute(folder))
    run, aside = os.path.split(root)
    if aside == QUARANTINE and is_run(run):
        return "quarantined", (printable(read_reason(run, name)),)
    if aside == SUPERSEDED and is_run(run):
        return "superseded", (LEFT,)
    step = parse_step(name)
    if step is None:
        return None
    return standing(scan(root), now).verdict(step)


def scan_run(root: str | os.PathLike[str]) -> Catalog:
    """Lists a folder that is to be a run.

    Raises:
        NotFound: there is no such folder, or it has nothing of a run.
        StorageError: it can't be read.
    """
    catalog = scan(root)
    if not is_run(catalog.root):
        raise NotFound(
            f"`{printable(catalog.root)}`: is no run: it has no run.json and no step-00001000 or the like",
            file=catalog.root,
        )
    return catalog


def rules_of(run: RunFile | None, root: str, keep: str | None = None) -> Rules:
    """The rules that a run.json has.

    Args:
        run: what it says; None when there is none.
        root: the run's folder, for messages.
        keep: retention rules to take in place of the run's own; the best checkpoint is kept besides.

    Raises:
        CorruptFile: it has a rule that can't be read.
        ArgumentError: ``keep`` can't be read, or is empty.
    """
    try:
        bests = parse_bests(run.best) if run is not None and run.best else ()
        own = parse_keep(run.keep, best=bests) if keep is None and run is not None and run.keep else ()
    except ArgumentError as reason:
        file = os.path.join(root, RUN_FILE)
        raise CorruptFile(f"`{printable(file)}`: {reason}", file=file) from reason
    return Rules(bests, with_best(own if keep is None else parse_keep(keep, best=bests), bests))


def standing(catalog: Catalog, now: datetime.datetime) -> Standing:
    """How the checkpoints of a run stand. A damaged run.json or pin is a note: it must not hide the checkpoints.

    Args:
        catalog: what is in the run's folder.
        now: the time to which ages are measured, with a time zone.
    """
    notes: list[str] = []
    rules, pins, past = Rules(), dict[str, int](), list[EpochMetrics]()
    try:
        run = read_run_file(catalog.root)
        rules, past = rules_of(run, catalog.root), history(run, catalog)
    except FormatError as reason:
        notes.append(str(reason))
    try:
        pins = read_pins(catalog.root)
    except FormatError as reason:
        notes.append(str(reason))
    top = tuple((rule, best(catalog.readable, rule)) for rule in rules.best)
    plan = plan_prune(catalog.checkpoints, rules.keep, now, pins=pins) if rules.keep else []
    return Standing(catalog, rules, top, pins, {one.step: one for one in plan}, tuple(notes), tuple(past))
