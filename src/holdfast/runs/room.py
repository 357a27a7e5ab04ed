"""Room for one more checkpoint: whether there is, and which rules would make some. Nothing is deleted for it."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence

from holdfast.runs.catalog import Listed, scan
from holdfast.runs.retention import KeepLast, Rule, keep_text, kept_bytes, plan_prune, with_best
from holdfast.runs.run_file import BestRule
from holdfast.runs.sizes import size_text
from holdfast.runs.standing import standing
from holdfast.state.paths import printable
from holdfast.storage.filesystem import check_room, free_bytes

_STRICTEST = KeepLast(1)
_ELSEWHERE = "make room on the disk, or save the run on another one"


def check_run_room(root: str, needed: int) -> None:
    """Refuses a save that can't fit, before its first byte, and says which rules would make room in the run.

    Args:
        root: the run's folder.
        needed: bytes that are to be written, not counting files that are linked.

    Raises:
        StorageError: fewer bytes are free. Nothing was written, and nothing was deleted: an old checkpoint goes only
            after a new one is safe.
    """
    free = free_bytes(root)
    if free is None or needed <= free:
        return  # manifests are read for the message alone
    now = datetime.datetime.now(datetime.UTC)
    run = standing(scan(root), now)
    advice = advise(root, run.catalog.checkpoints, run.rules.keep, now, bests=run.rules.best, pins=run.pins)
    check_room(root, needed, advice=advice)


def advise(
    root: str,
    checkpoints: Sequence[Listed],
    keep: Sequence[Rule],
    now: datetime.datetime,
    *,
    bests: Sequence[BestRule] = (),
    pins: Mapping[str, int] | None = None,
) -> str:
    """What would make room on a full disk: the run's own rules, else the strictest that keep its best and its pins.

    Args:
        root: the run's folder, for the command to type.
        checkpoints: of the run.
        keep: its retention rules; empty when all are kept.
        now: the time to which ages are measured, with a time zone.
        bests: the run's best rules.
        pins: name to step.
    """
    held = sum(one.size for one in checkpoints)
    for rules, words in ((keep, ""), ([_STRICTEST], f" --keep {keep_text([_STRICTEST])}")):
        plan = plan_prune(checkpoints, with_best(rules, bests), now, pins=pins) if rules else None
        freed = held - kept_bytes(checkpoints, plan) if plan else 0
        if freed:
            command = f"holdfast prune {printable(shlex.quote(root))}{words}"
            return f"{command} would free up to {size_text(freed)} (--dry-run shows what goes), or {_ELSEWHERE}"
    return f"no rule would free any of the run's {size_text(held)}: {_ELSEWHERE}"
