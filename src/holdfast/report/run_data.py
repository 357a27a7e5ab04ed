"""A run as data for the page: its checkpoints with what is said of each, and its metrics over the steps."""

from __future__ import annotations

from typing import Any

from holdfast.errors import FormatError
from holdfast.runs.catalog import Listed, choose_resume, read_reason
from holdfast.runs.manifest import metrics_to_json
from holdfast.runs.run_file import RunFile, read_run_file
from holdfast.runs.standing import Standing
from holdfast.state.paths import printable


def run_data(run: Standing) -> dict[str, Any]:
    """What the page shows of a run."""
    catalog = run.catalog
    try:
        file = read_run_file(catalog.root)
    except FormatError:  # the standing has a note of it
        file = None
    return {
        "root": printable(catalog.root),
        "rules": _rules(file),
        "best": [{"rule": printable(str(rule)), "step": top.step if top else None} for rule, top in run.best],
        "checkpoints": [_checkpoint(run, listed) for listed in catalog.checkpoints],
        "history": [_point(line.step, line.epoch, line.metrics) for line in run.history],
        "resume": [printable(reason) for reason in choose_resume(catalog).reasons],
        "size": catalog.size,
        "budget": run.rules.budget,
        "aside": _aside(run),
        "notes": [printable(note) for note in run.notes],
    }


def _rules(file: RunFile | None) -> dict[str, str]:
    said = {"best": file.best, "keep": file.keep, "save": file.save} if file else {}
    return {name: printable(text) for name, text in said.items() if text}


def _checkpoint(run: Standing, listed: Listed) -> dict[str, Any]:
    word, reasons = run.verdict(listed.step)
    manifest = listed.manifest
    told = {
        "best": [printable(str(rule)) for rule in run.best_by(listed.step)],
        "pins": list(run.pins_of(listed.step)),
        "verdict": word,
        "reasons": [printable(reason) for reason in reasons],
    }
    if manifest is None:
        return {**_point(listed.step, None, {}), **told, "problem": printable(listed.problem or "damaged")}
    return {
        **_point(listed.step, manifest.epoch, manifest.metrics),
        **told,
        "batch": manifest.batch,
        "time": manifest.time.isoformat(),
        "size": listed.size,
    }


def _point(step: int, epoch: int | None, metrics: dict[str, float | None]) -> dict[str, Any]:
    """Metrics at a step; NaN and the infinities are text, as in the manifest."""
    return {
        "step": step,
        "epoch": epoch,
        "metrics": {printable(name): value for name, value in metrics_to_json(metrics).items()},
    }


def _aside(run: Standing) -> list[str]:
    catalog = run.catalog
    partial = [f"step {step} was never committed; the next writer of the run removes it" for step in catalog.partial]
    quarantined = [
        f"{printable(name)} is in quarantine: {printable(read_reason(catalog.root, name))}"
        for name in catalog.quarantined
    ]
    left = [f"{printable(name)} is superseded: the run went back before it" for name in catalog.superseded]
    return partial + quarantined + left
