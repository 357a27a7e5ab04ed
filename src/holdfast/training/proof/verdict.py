"""What a proof found, and what most likely caused a difference: a pure decision that returns its reasons."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from holdfast.state.paths import printable
from holdfast.training.proof.comparing import Difference

Verdict = Literal["same", "differs", "not deterministic", "fails when resumed"]
_SHOWN = 5


class Facts(msgspec.Struct, frozen=True):
    """What is known of a difference.

    Attributes:
        differences: leaves of the final checkpoint.
        keeps_rng: whether the random state is part of the checkpoints.
        kinds: the kind of each object of the run: ``{"sched": "scheduler"}``.
        item: the first item of the loader that was another one, as text; None when all were the same.
        findings: of the audit, as plain data.
        notes: of the loader.
    """

    differences: list[Difference]
    keeps_rng: bool
    kinds: dict[str, str]
    item: str | None
    findings: list[dict[str, Any]]
    notes: list[str]


class Cause(msgspec.Struct, frozen=True):
    """One likely cause.

    Attributes:
        kind: ``rng``, ``loader``, ``scheduler``, ``object``, ``kernels`` or ``unknown``.
        text: what speaks for it, and what to do.
    """

    kind: str
    text: str


def likely_causes(facts: Facts) -> list[Cause]:
    """What most likely made a resumed run differ, the likeliest first."""
    causes = []
    if not facts.keeps_rng:
        causes.append(Cause("rng", "the random state is in no checkpoint (rng=False): leave rng=False out"))
    if facts.item is not None and facts.keeps_rng:
        causes.append(_loader(facts))
    causes += _schedulers(facts)
    causes += [
        Cause("object", f"`{one['name']}` is not in the run: {one['reason']}. {one['line']}")
        for one in facts.findings
        if one["kind"] not in ("scheduler", "loader", "generator")
    ]
    if not causes:
        causes += _drawn(facts)
    return causes or [_unknown(facts)]


def _loader(facts: Facts) -> Cause:
    drawn = [one for one in facts.findings if one["kind"] in ("loader", "generator")]
    if drawn:
        why = "; ".join(f"`{one['name']}` is not in the run: {one['reason']}. {one['line']}" for one in drawn)
    elif facts.notes:
        why = "; ".join(facts.notes)
    else:
        why = "the dataset, a sampler or an augmentation draws by something that the run does not keep"
    return Cause("loader", f"the data differ from {facts.item} on: {why}")


def _schedulers(facts: Facts) -> list[Cause]:
    missing = [one for one in facts.findings if one["kind"] == "scheduler"]
    if missing:
        texts = (f"`{one['name']}` is not in the run: {one['reason']}. {one['line']}" for one in missing)
        return [Cause("scheduler", text) for text in texts]
    if any(one.path == "position.step" for one in facts.differences):
        return []  # one went on for longer; all else follows
    rates = [one.path for one in facts.differences if one.path.endswith((".lr", ".momentum", ".initial_lr"))]
    there = [name for name, kind in facts.kinds.items() if kind == "scheduler"]
    states = [one.path for one in facts.differences if one.path.split(".")[0] in there]
    if not rates and not states:
        return []
    text = f"`{(rates or states)[0]}` differs: construct the scheduler before the run resumes, and step it at the same "
    return [Cause("scheduler", f"{text}places; `{', '.join(there) or 'none'}` is in the run")]


def _drawn(facts: Facts) -> list[Cause]:
    """Random numbers that only one of the two drew; a generator of the program's own that the data do not show."""
    found = [
        Cause("rng", f"`{one['name']}` is not in the run: {one['reason']}. {one['line']}")
        for one in facts.findings
        if one["kind"] == "generator"
    ]
    if found or not any(one.path.startswith("rng.") for one in facts.differences):
        return found
    return [
        Cause("rng", "the random state differs: something draws random numbers after resume() only when it resumes")
    ]


def _unknown(facts: Facts) -> Cause:
    parts = ", ".join(dict.fromkeys(one.path.split(".")[0] for one in facts.differences))
    text = "the uninterrupted run gives the same bits twice, the data were the same, and the audit found nothing"
    return Cause("unknown", f"{text}; what differs is in {parts}: look for plain variables that count")


class RunProof(msgspec.Struct, frozen=True):
    """One run of the script, compared.

    Attributes:
        root: as the script names it.
        step: of the last checkpoint.
        leaves: how many values were compared, tensors and plain ones.
        bytes: in tensors.
        differences: leaves of the last checkpoint that differ.
        first_step: the first common step whose checkpoints differ, when that is known.
    """

    root: str
    step: int
    leaves: int
    bytes: int
    differences: list[Difference]
    first_step: int | None = None


class Killed(msgspec.Struct, frozen=True):
    """One process that was killed.

    Attributes:
        where: what kind of place.
        run: the run, as the script names it.
        step: items done, as far as is known.
        resumed: the step from which the next process went on; None when nothing was committed.
    """

    where: str
    run: str
    step: int | None
    resumed: int | None


class Proof(msgspec.Struct, frozen=True):
    """What ``holdfast prove`` found; prints as a report.

    Attributes:
        script: the file.
        verdict: ``same``; ``differs``; ``not deterministic``, so that nothing can be said; ``fails when resumed``.
        runs: each run of the script.
        kills: where the processes were killed.
        causes: the likeliest first; empty when all is the same.
        audit: of the uninterrupted run: what is alive and stateful and not in a run.
        seed: of the places where it was killed.
        save: the save rules that were added.
        notes: what was not compared, and why.
        seconds: in all.
        output: the last lines of a script that failed when it was resumed.
        folder: where the runs lie, if they were kept.
    """

    script: str
    verdict: Verdict
    runs: list[RunProof]
    kills: list[Killed]
    causes: list[Cause]
    audit: list[dict[str, Any]]
    seed: int
    save: str
    seconds: float
    notes: list[str] = []
    output: list[str] = []
    folder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def __str__(self) -> str:
        lines = [f"{printable(self.script)}: {_TOLD[self.verdict]}"]
        for kill in self.kills:
            at = "" if kill.step is None else f" after item {kill.step} of {printable(kill.run)}"
            then = "began anew" if kill.resumed is None else f"resumed from step {kill.resumed}"
            lines.append(f"  killed {kill.where}{at}; {then}")
        for run in self.runs:
            lines += _run_lines(run)
        lines += [f"  likely cause ({one.kind}): {printable(one.text)}" for one in self.causes]
        if self.audit:
            lines.append(f"  alive and stateful, and not in the run: {len(self.audit)}")
            lines += [f"    `{printable(one['name'])}`: {printable(one['line'])}" for one in self.audit]
        lines += [f"  note: {printable(note)}" for note in self.notes]
        lines += [f"  | {printable(line)}" for line in self.output]
        again = f"--seed {self.seed}" + (f" --save {self.save.replace(' ', ',')}" if self.save else "")
        lines.append(f"  {self.seconds:.0f} s; the same places again: {again}")
        return "\n".join(lines + ([f"  kept in {printable(self.folder)}"] if self.folder else []))


_TOLD: dict[Verdict, str] = {
    "same": "killed and resumed, it ends with the very same bits",
    "differs": "killed and resumed, it ends with other bits",
    "not deterministic": "two uninterrupted runs differ already, so that a resume can't be judged",
    "fails when resumed": "it runs through uninterrupted, and fails when it is resumed",
}


def _run_lines(run: RunProof) -> list[str]:
    head = (
        f"  {printable(run.root)}: step {run.step}, {run.leaves:,} values and {run.bytes:,} bytes in tensors compared"
    )
    if not run.differences:
        return [f"{head}: no difference"]
    lines = [f"{head}: {len(run.differences)} differ"]
    if run.first_step is not None:
        lines.append(f"    from step {run.first_step} on")
    lines += [f"    `{printable(one.path)}`: {printable(one.what)}" for one in run.differences[:_SHOWN]]
    return lines + ([f"    ... {len(run.differences) - _SHOWN} more"] if len(run.differences) > _SHOWN else [])
