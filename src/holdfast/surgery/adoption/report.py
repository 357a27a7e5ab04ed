"""What an adoption did, or would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.state.paths import printable
from holdfast.surgery.adoption.planning import LeftOut

_METRICS = 3
_WIDE = 60


class AdoptedStep(msgspec.Struct, frozen=True):
    """One file that became a step.

    Attributes:
        file: its name in the old folder.
        step: its number in the run.
        epoch: the epoch to go on with, from 0; None when it is not known.
        batch: batches of that epoch that are done.
        metrics: by name.
        holds: keys of the objects' states: what a run's objects are restored from.
        values: keys of everything else that was kept.
        pins: the names that it is pinned as.
        notes: for people.
    """

    file: str
    step: int
    epoch: int | None
    batch: int
    metrics: dict[str, float]
    holds: list[str]
    values: list[str]
    pins: list[str]
    notes: list[str]


class AdoptReport(msgspec.Struct, frozen=True):
    """What became of a folder of old checkpoints. Print it, or use its fields.

    Attributes:
        old: the folder, as the caller named it.
        run: the run, likewise.
        steps: what became steps, in their order.
        left_out: what did not, each with its reason.
        best: the rule for ``@best``, or None.
        notes: what was decided about epochs and steps, and why.
        bytes: of the steps in the run; 0 when only a plan was made.
        seconds: from the call to the end.
        dry_run: whether nothing was written.
    """

    old: str
    run: str
    steps: list[AdoptedStep]
    left_out: list[LeftOut]
    best: str | None = None
    notes: list[str] = []
    bytes: int = 0
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def resume(self) -> str:
        """The line that goes on from the newest step, with the parts that it holds."""
        words = (
            "".join(f", {_keyword(key, self.steps[-1].holds)}" for key in self.steps[-1].holds) if self.steps else ""
        )
        return f"holdfast.Run({self.run!r}{words})"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists."""
        return {**msgspec.to_builtins(self), "resume": self.resume}

    def __str__(self) -> str:
        done = "would become" if self.dry_run else "became"
        proved = "; nothing was written" if self.dry_run else f", {self.bytes:,} bytes, each read again and equal"
        count = f"{len(self.steps)} step{'s' if len(self.steps) != 1 else ''}"
        lines = [f"{printable(self.old)} {done} {count} of the run {printable(self.run)}{proved}", ""]
        shared = _shared(self.steps)
        lines += _table(
            ("file", "step", "epoch", "metrics", "holds", "notes"), [_row(one, shared) for one in self.steps]
        )
        lines += ["", *(f"all of them: {printable(note)}" for note in shared)] if shared else []
        if self.left_out:
            lines += ["", f"left out ({len(self.left_out)}):"]
            lines += [f"  {printable(one.file)}: {printable(one.reason)}" for one in self.left_out]
        lines += ["", *(printable(note) for note in self.notes)]
        if self.best is not None:
            lines.append(f"best: {printable(self.best)}")
        return "\n".join([*lines, f"resume: {printable(self.resume)}"])


def _keyword(key: str, holds: Sequence[str]) -> str:
    """How the run is given the object of a part: by the name that its kind is found under, else by its key."""
    base = key.removesuffix("_state_dict")
    known = {"state_dict": "model", "net": "model", "model": "model", "optim": "optimizer", "lr_scheduler": "scheduler"}
    name = known.get(base, base)
    name = base if sum(known.get(one.removesuffix("_state_dict"), one) == name for one in holds) > 1 else name
    return f"{name}=..." if name.isidentifier() else f"**{{{key!r}: ...}}"


def _shared(steps: Sequence[AdoptedStep]) -> list[str]:
    """Notes that are the same for all of several steps, to be said once."""
    return [note for note in steps[0].notes if all(note in one.notes for one in steps)] if len(steps) > 1 else []


def _row(one: AdoptedStep, shared: Sequence[str]) -> tuple[str, ...]:
    shown = [f"{printable(name[:30])}={value:.6g}" for name, value in one.metrics.items()]
    more = [f"and {len(shown) - _METRICS} more"] if len(shown) > _METRICS else []
    epoch = "?" if one.epoch is None else f"{one.epoch}.{one.batch}" if one.batch else str(one.epoch)
    notes = [*(f"pin {name}" for name in one.pins), *(note for note in one.notes if note not in shared)]
    return (
        _cut(one.file),
        str(one.step),
        epoch,
        " ".join([*shown[:_METRICS], *more]),
        _cut(", ".join(one.holds)),
        "; ".join(map(printable, notes)),
    )


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _WIDE else f"{shown[: _WIDE - 3]}..."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
