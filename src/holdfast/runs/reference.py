"""References: ``runs/a@best`` and its like, as text and as the checkpoint that they name."""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from holdfast.errors import ArgumentError, NotFound
from holdfast.runs.catalog import Catalog, Listed, best, choose_resume, is_run, scan
from holdfast.runs.elsewhere import found_at
from holdfast.runs.layout import MANIFEST
from holdfast.runs.run_file import BestRule, parse_best, parse_bests, read_pins, read_run_file
from holdfast.state.paths import printable
from holdfast.storage.places import is_folder, is_there

FORMS = "@last, @best, @best:METRIC, @best:METRIC:max, @step=1000, @-2, @pin:NAME"
"""What may follow a run's folder."""

_FORM = re.compile(
    r"(?P<last>last)|best(:(?P<best>.+))?|step=(?P<step>\d{1,19})|-(?P<back>\d{1,9})|pin:(?P<pin>.+)", re.DOTALL
)
_SHOWN = 10


class Reference(msgspec.Struct, frozen=True):
    """A reference, taken apart.

    Attributes:
        folder: of the run.
        kind: ``last``, ``best``, ``step``, ``back`` (``@-2``) or ``pin``.
        value: the metric, the number or the name; empty where the kind takes none.
    """

    folder: str
    kind: Literal["last", "best", "step", "back", "pin"]
    value: str = ""


def parse(text: str) -> Reference | None:
    """Takes ``runs/a@best`` apart; None when ``text`` is a plain path.

    A path that exists is always a plain path, whatever its name.

    Raises:
        ArgumentError: the folder before the ``@`` is a run, and what follows is no form of reference.
    """
    folder, mark, form = text.rpartition("@")
    if not mark or is_there(text):
        return None
    match = _FORM.fullmatch(form)
    if match is None:
        if folder and is_run(folder):
            raise ArgumentError(f"{printable(text)!r}: after a run come {FORMS}, not '@{printable(form)}'", file=text)
        return None
    folder = folder or "."
    for kind in ("last", "step", "back", "pin"):
        if match[kind] is not None:
            return Reference(folder, kind, "" if kind == "last" else match[kind])
    return Reference(folder, "best", match["best"] or "")


def resolve(reference: Reference) -> str:
    """The folder of the checkpoint that a reference names.

    Raises:
        NotFound: no such run, step, pin, or no checkpoint with that metric; the message says what there is.
        ArgumentError: ``@best`` where the run has no rule for it, or ``@-0``.
    """
    if not is_folder(reference.folder):
        raise NotFound(f"`{printable(reference.folder)}`: no such run", file=reference.folder)
    catalog = scan(reference.folder)
    if not catalog.readable and reference.kind != "step":
        reasons = "; ".join(choose_resume(catalog).reasons)
        raise NotFound(f"`{printable(reference.folder)}`: {reasons}", file=reference.folder)
    return _find(reference, catalog).path


def locate(path: str) -> str | None:
    """The folder of the checkpoint that is meant by a checkpoint's folder, a run (its last one) or a reference.

    Returns:
        The folder; None when ``path`` is none of these: a file, another folder, or nothing.

    Raises:
        NotFound, ArgumentError: as :func:`parse` and :func:`resolve`.
    """
    path = found_at(path)
    if is_folder(path):
        if is_there(os.path.join(path, MANIFEST)):
            return path
        return resolve(Reference(path, "last")) if is_run(path) else None
    reference = parse(path)
    return None if reference is None else resolve(reference)


def best_rule(root: str, text: str, catalog: Catalog) -> BestRule:
    """The rule behind ``@best`` or ``@best:text``: as written, else the run's first one, or that for the metric.

    Raises:
        ArgumentError: neither says whether low or high is good; the message names the metrics there are.
    """
    if text.endswith((":min", ":max")):
        return parse_best(text)
    run = read_run_file(root)
    for own in parse_bests(run.best) if run is not None and run.best else ():
        if text in ("", own.metric):
            return own
    metrics = sorted({name for one in catalog.readable if one.manifest for name in one.manifest.metrics})
    name = text or (metrics[0] if metrics else "METRIC")
    there = f"its metrics: {_listed(metrics)}" if metrics else "none of its checkpoints has a metric"
    raise ArgumentError(
        f"`{printable(root)}`: the run does not say which {printable(name)} is best: write @best:{printable(name)}:min "
        f"or @best:{printable(name)}:max ({there})",
        file=root,
    )


def _find(reference: Reference, catalog: Catalog) -> Listed:
    found: Listed | None
    if reference.kind == "last":
        return catalog.readable[-1]
    if reference.kind == "back":
        return _back(reference, catalog)
    if reference.kind == "best":
        rule = best_rule(catalog.root, reference.value, catalog)
        found = best(catalog.readable, rule)
        if found is None:
            raise _nothing(catalog, f"no checkpoint has a number for {printable(rule.metric)}")
        return found
    step = int(reference.value) if reference.kind == "step" else _pinned(reference, catalog)
    found = catalog.find(step)
    if found is None:
        raise _nothing(catalog, f"has no step {step}", step)
    return found


def _back(reference: Reference, catalog: Catalog) -> Listed:
    back = int(reference.value)
    if back == 0:
        raise ArgumentError("@-1 is the newest checkpoint and @-2 the one before; there is no @-0")
    if back > len(catalog.readable):
        raise _nothing(catalog, f"@-{back} is further back than its {len(catalog.readable)} checkpoints")
    return catalog.readable[-back]


def _pinned(reference: Reference, catalog: Catalog) -> int:
    pins = read_pins(catalog.root)
    if reference.value not in pins:
        there = _listed(list(pins)) or "none"
        raise NotFound(
            f"`{printable(catalog.root)}`: no pin {printable(reference.value)!r}; pins: {there}", file=catalog.root
        )
    return pins[reference.value]


def _nothing(catalog: Catalog, what: str, step: int | None = None) -> NotFound:
    there = _listed([str(one.step) for one in catalog.readable]) or "none"
    return NotFound(f"`{printable(catalog.root)}`: {what}; its steps: {there}", file=catalog.root, step=step)


def _listed(names: list[str]) -> str:
    shown = [printable(name[:100]) for name in names[-_SHOWN:]]
    return (f"... {len(names) - _SHOWN} more, " if len(names) > _SHOWN else "") + ", ".join(shown)
