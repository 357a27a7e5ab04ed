"""Proving that a script resumes: run it, run it again and kill it, compare what both leave behind.

The script runs in processes of its own; see proving_process.py. This side imports no torch: it starts, waits, reads
traces and compares files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from holdfast.errors import ArgumentError, MachineError, MissingExtra, NotFound
from holdfast.runs.catalog import Listed, scan
from holdfast.runs.manifest import Manifest, read_manifest
from holdfast.state.paths import printable
from holdfast.storage.atomic import remove_folder
from holdfast.training.proof.comparing import Compared, Difference, common_steps, compare_checkpoints, has_part
from holdfast.training.proof.proving_process import Kill, Plan, Where
from holdfast.training.proof.verdict import Cause, Facts, Killed, Proof, RunProof, Verdict, likely_causes
from holdfast.training.triggers import parse_save

_START = "from holdfast.training.proof.proving_process import main; main()"
_SAVES_BETWEEN_KILLS = 5
_PLACES: tuple[Where, ...] = ("inside an item", "inside a save", "between items")
_LAST_LINES = 20
_SEEDS = {"python": "random.seed(0)", "numpy": "numpy.random.seed(0)", "torch": "torch.manual_seed(0)"}
"""The global generators, and how a script seeds them."""
_UNSEEDED = "the script does not seed {name}'s generator, so its state was not compared: {seed}"


class Options(msgspec.Struct, frozen=True):
    """How to prove.

    Attributes:
        kills: how often the script is killed.
        seed: of the places; None draws one.
        save: save rules to add, ``"7step"``; None chooses one by the script's length; "none" adds none.
        timeout: seconds in all.
        keep_folders: whether the runs stay when the proof is done.
    """

    kills: int = 3
    seed: int | None = None
    save: str | None = None
    timeout: float = 3600.0
    keep_folders: bool = False


class Trace(msgspec.Struct):
    """What one process wrote about itself.

    Attributes:
        roots: what the script calls its runs, in order.
        resumed: run and step of each resume; the step is None when there was nothing to go on from.
        items: (run, step, digest) of each item that the loaders gave.
        findings: of the audits.
        notes: of the audits: what the loaders can't bring back.
        generators: digests of the global generators when it made its first run.
        killed: whether it killed itself.
        seconds: from its first run to its end; 0.0 when it did not get there.
        calls: changes to the disk.
        commits: checkpoints that were put in their place.
    """

    roots: dict[int, str] = {}
    resumed: list[tuple[int, int | None]] = []
    items: list[tuple[int, int, str]] = []
    findings: list[dict[str, Any]] = []
    notes: list[str] = []
    generators: dict[str, str] = {}
    killed: bool = False
    seconds: float = 0.0
    calls: int = 0
    commits: int = 0


def prove(script: str, arguments: Sequence[str], options: Options, tell: Callable[[str], None]) -> Proof:
    """Runs a script uninterrupted, then killed and resumed, and compares the last checkpoints bit by bit.

    Args:
        script: a Python file that trains with ``holdfast.Run``.
        arguments: its arguments.
        options: how often to kill, and so on.
        tell: called with a line when something has happened.

    Raises:
        NotFound: no such script.
        ArgumentError: it makes no run, or commits nothing; or an option is wrong.
        MachineError: it fails by itself, or the time is up.
        MissingExtra: torch is not installed, without which no script makes a run.
    """
    if not os.path.isfile(script):
        raise NotFound(f"`{printable(script)}`: no such script", file=script)
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra('prove needs torch, which is not installed: pip install "holdfast[torch]"')
    if options.kills < 1:
        raise ArgumentError("--kills: at least 1, or nothing is proved")
    if options.save not in (None, "none"):
        parse_save(options.save or "")
    folder = tempfile.mkdtemp(prefix="holdfast-prove-")
    try:
        return _Proving(script, list(arguments), options, tell, folder).prove()
    finally:
        if not options.keep_folders:
            remove_folder(folder)


def draw_kills(items: dict[int, int], trace: Trace, count: int, draw: random.Random) -> list[Kill]:
    """Where to kill: one place in each of ``count`` equal parts of the training, of all kinds in turn.

    Args:
        items: how many items each run has; empty for a script with a loop of its own.
        trace: of the uninterrupted run.
        count: how many.
        draw: the source of chance.
    """
    total = sum(items.values())
    if total == 0:
        return [_own_loop(trace, count, number, draw) for number in range(count)]
    places = [place for _ in range(-(-count // len(_PLACES))) for place in draw.sample(_PLACES, len(_PLACES))]
    calls = max(1, trace.calls // max(1, trace.commits))
    kills = []
    count = min(count, total)
    for number, where in zip(range(count), places, strict=False):
        low, high = number * total // count, (number + 1) * total // count
        if number == 0:
            low = min((low + high + 1) // 2, high - 1)  # late enough that something is committed
        at = draw.randrange(low, high)
        run = next(run for run in sorted(items) if at < sum(size for one, size in items.items() if one <= run))
        step = at - sum(size for one, size in items.items() if one < run)
        kills.append(Kill(where, run, step, share=draw.uniform(0.1, 0.9), calls=draw.randint(1, calls)))
    return kills


def _own_loop(trace: Trace, count: int, number: int, draw: random.Random) -> Kill:
    """A loop that does not go through ``batches`` shows nothing of its items: kill by the clock, or inside a save."""
    if number % 2 == 0:
        last = max(1, trace.calls // count)
        first = 1 if number else min(2 * (trace.calls // max(1, trace.commits)), last)  # after one that was committed
        return Kill("inside a save", calls=draw.randint(max(1, first), last))
    return Kill("at some time", seconds=draw.uniform(0.2, 0.9) * trace.seconds / count)


def read_trace(file: str) -> Trace:
    """What a process wrote; the last line may be torn."""
    trace = Trace()
    with open(file, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            _read_line(trace, msgspec.json.decode(line))
    return trace


def _read_line(trace: Trace, line: dict[str, Any]) -> None:
    if "item" in line:
        trace.items.append((line["item"], line["step"], line["digest"]))
    elif "run" in line:
        trace.roots[line["run"]] = line["root"]
        trace.generators = trace.generators or line["generators"]
    elif "resumed" in line:
        trace.resumed.append((line["resumed"], line["step"]))
    elif "audit" in line:
        trace.findings += line["report"]["findings"]
        trace.notes += line["report"]["notes"]
    elif "killed" in line:
        trace.killed = True
    else:
        trace.seconds, trace.calls, trace.commits = line["seconds"], line["calls"], line["commits"]


class _Proving:
    """One proof, from the first process to the report."""

    def __init__(
        self, script: str, arguments: list[str], options: Options, tell: Callable[[str], None], folder: str
    ) -> None:
        self._script, self._arguments, self._options, self._tell = script, arguments, options, tell
        self._folder = folder
        self._seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
        self._began = time.monotonic()
        self._processes = 0
        self._output = ""
        self._unseeded: list[str] = []

    def prove(self) -> Proof:
        """Runs, kills, compares."""
        whole = self._uninterrupted("whole")
        if not whole.roots:
            raise ArgumentError(f"`{printable(self._script)}`: makes no holdfast.Run, so there is nothing to resume")
        for number, root in whole.roots.items():
            self._last("whole", number, root)
        items = {number: 1 + max(step for run, step, _ in whole.items if run == number) for number in _runs(whole)}
        kills = draw_kills(items, whole, self._options.kills, random.Random(self._seed))
        rule = self._rule(sum(items.values()), len(kills))
        killed, traces, failed = self._killed(whole, kills, rule)
        self._unseeded = unseeded([whole, *traces])
        if failed:
            return self._proof("fails when resumed", [], killed, [_failure(traces[-1])], whole, rule)
        runs = [self._compare("whole", "killed", number, root) for number, root in whole.roots.items()]
        if not any(run.differences for run in runs):
            return self._proof("same", runs, killed, [], whole, rule)
        return self._explained(runs, killed, whole, traces, rule)

    def _explained(
        self, runs: list[RunProof], killed: list[Killed], whole: Trace, traces: list[Trace], rule: str
    ) -> Proof:
        """Tells a script that is never the same twice from one that resumes wrongly, and finds the likely cause."""
        self._tell("they differ; once more uninterrupted, to see whether the script gives the same bits twice")
        self._uninterrupted("again", rule)
        again = [self._compare("whole", "again", number, root) for number, root in whole.roots.items()]
        if any(run.differences for run in again):
            cause = not_deterministic(bool(self._manifest(whole).environment.get("devices")), self._unseeded)
            return self._proof("not deterministic", again, killed, [cause], whole, rule)
        runs = [
            msgspec.structs.replace(run, first_step=self._first_step(number))
            for number, run in zip(whole.roots, runs, strict=True)
        ]
        manifest = self._manifest(whole)
        facts = Facts(
            differences=[one for run in runs for one in run.differences],
            keeps_rng=has_part(self._last("whole", *next(iter(whole.roots.items()))).path, "rng"),
            kinds={name: str(one.get("kind")) for name, one in manifest.objects.items()},
            item=first_other_item(whole, traces),
            findings=whole.findings,
            notes=list(dict.fromkeys(whole.notes)),
        )
        return self._proof("differs", runs, killed, likely_causes(facts), whole, rule)

    def _proof(
        self, verdict: Verdict, runs: list[RunProof], killed: list[Killed], causes: list[Cause], whole: Trace, rule: str
    ) -> Proof:
        return Proof(
            script=self._script,
            verdict=verdict,
            runs=runs,
            kills=killed,
            causes=causes,
            audit=whole.findings,
            seed=self._seed,
            save=rule,
            seconds=time.monotonic() - self._began,
            notes=[_UNSEEDED.format(name=name, seed=_SEEDS.get(name, name)) for name in self._unseeded],
            output=self._last_lines() if verdict == "fails when resumed" else [],
            folder=self._folder if self._options.keep_folders else None,
        )

    def _rule(self, items: int, kills: int) -> str:
        if self._options.save is not None:
            return "" if self._options.save == "none" else self._options.save
        return f"{max(1, items // (_SAVES_BETWEEN_KILLS * (kills + 1)))}step" if items else ""

    # -- processes ---------------------------------------------------------------------------------------------------

    def _uninterrupted(self, name: str, rule: str = "") -> Trace:
        self._tell("uninterrupted ..." if name == "whole" else "uninterrupted again ...")
        code, trace = self._process(name, rule, None, audit=name == "whole")
        if code != 0:
            raise MachineError(
                f"`{printable(self._script)}`: fails by itself, with exit code {code}; its last lines:\n"
                + "\n".join(printable(line) for line in self._last_lines()),
                file=self._script,
            )
        self._tell(f"uninterrupted: {len(trace.items)} items in {trace.seconds:.1f} s")
        return trace

    def _killed(self, whole: Trace, kills: list[Kill], rule: str) -> tuple[list[Killed], list[Trace], bool]:
        """The killed processes and the one that reached the end; True when one failed that was not killed."""
        killed: list[Killed] = []
        traces: list[Trace] = []
        for kill in (*kills, None):
            code, trace = self._process("killed", rule, kill)
            if killed:
                killed[-1] = msgspec.structs.replace(killed[-1], resumed=_resumed(trace, killed[-1].run))
            traces.append(trace)
            if code == -signal.SIGKILL and trace.killed and kill is not None:
                killed.append(self._told(whole, trace, kill))
                continue
            if code == 0:
                break
            return killed, traces, True
        if not killed:
            raise ArgumentError(f"`{printable(self._script)}`: is over before it could be killed; let it train longer")
        if all(one.resumed is None for one in killed):
            raise ArgumentError(
                f"`{printable(self._script)}`: nothing was committed before it was killed, so that it began anew each "
                "time and nothing is proved; --save 1step, or more --kills"
            )
        return killed, traces, False

    def _told(self, whole: Trace, trace: Trace, kill: Kill) -> Killed:
        number, step = trace.items[-1][:2] if trace.items else (kill.run, None)
        self._tell(f"killed {kill.where}" + ("" if step is None else f", after item {step}"))
        return Killed(kill.where, whole.roots.get(number, ""), step, None)

    def _process(self, name: str, rule: str, kill: Kill | None, *, audit: bool = False) -> tuple[int, Trace]:
        """Runs the script in a process of its own and waits for its end, whatever that is."""
        self._processes += 1
        stem = os.path.join(self._folder, f"process-{self._processes}")
        self._output = f"{stem}.output"
        folder = os.path.join(self._folder, name)
        plan = Plan(folder, f"{stem}.trace", rule, audit, kill)
        command = [sys.executable, "-c", _START, msgspec.json.encode(plan).decode(), self._script, *self._arguments]
        with open(self._output, "wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(max(0.0, self._began + self._options.timeout - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise MachineError(
                    f"`{printable(self._script)}`: the time is up ({self._options.timeout:g} s), in process "
                    f"{self._processes}; nothing is proved. --timeout gives more",
                    file=self._script,
                ) from None
            finally:
                _end_group(process)
        with contextlib.suppress(FileNotFoundError):  # it died before it could write
            return code, read_trace(plan.trace)
        return code, Trace()

    def _last_lines(self) -> list[str]:
        with open(self._output, encoding="utf-8", errors="backslashreplace") as lines:
            return lines.read().splitlines()[-_LAST_LINES:]

    # -- what they left ----------------------------------------------------------------------------------------------

    def _last(self, name: str, number: int, root: str) -> Listed:
        readable = scan(os.path.join(self._folder, name, f"run-{number}")).readable
        if not readable:
            raise ArgumentError(f"`{printable(self._script)}`: its run {printable(root)} commits nothing to compare")
        return readable[-1]

    def _manifest(self, whole: Trace) -> Manifest:
        number, root = next(iter(whole.roots.items()))
        return read_manifest(self._last("whole", number, root).path)

    def _compare(self, left: str, right: str, number: int, root: str) -> RunProof:
        found: Compared = compare_checkpoints(self._last(left, number, root).path, self._last(right, number, root).path)
        return RunProof(root, found.step, found.leaves, found.bytes, self._counted(found.differences))

    def _counted(self, differences: list[Difference]) -> list[Difference]:
        """Without the generators that each process finds in another state: they differ, and say nothing."""
        left_out = [f".rng.{name}." for name in self._unseeded]
        return [one for one in differences if not any(part in f".{one.path}" for part in left_out)]

    def _first_step(self, number: int) -> int | None:
        """The first step at which the killed run differs from the uninterrupted one that saved as often."""
        roots = [os.path.join(self._folder, name, f"run-{number}") for name in ("again", "killed")]
        for left, right in common_steps(*roots):
            found = compare_checkpoints(left, right)
            if self._counted(found.differences):
                return found.step
        return None


def _runs(trace: Trace) -> list[int]:
    return sorted({run for run, _, _ in trace.items})


def _resumed(trace: Trace, root: str) -> int | None:
    """The step from which a process resumed the run of that name."""
    return next((step for number, step in reversed(trace.resumed) if trace.roots[number] == root), None)


def first_other_item(whole: Trace, traces: Sequence[Trace]) -> str | None:
    """The first item that a killed or resumed process saw and that was another one in the uninterrupted run."""
    wanted = {(run, step): digest for run, step, digest in whole.items}
    items = [((run, step), digest) for trace in traces for run, step, digest in trace.items]
    seen = sorted(place for place, digest in items if wanted.get(place, digest) != digest)
    return f"item {seen[0][1]} of {whole.roots[seen[0][0]]}" if seen else None


def _failure(trace: Trace) -> Cause:
    step = next((step for _, step in reversed(trace.resumed)), None)
    at = "before it resumed" if step is None else f"after it resumed from step {step}"
    return Cause("script", f"a process that was started again failed {at}; its last lines follow")


def unseeded(traces: Sequence[Trace]) -> list[str]:
    """The global generators that processes find in different states when each makes its first run.

    One that was killed before that, inside the first changes to the disk, says nothing of them.
    """
    first, *others = [trace.generators for trace in traces if trace.generators]
    return [name for name in _SEEDS if name not in first or any(first[name] != one.get(name) for one in others)]


def not_deterministic(devices: bool, unseeded: list[str]) -> Cause:
    """Why two uninterrupted runs differ, as far as it shows."""
    if unseeded:
        calls = ", ".join(_SEEDS[name] for name in unseeded)
        return Cause(
            "rng", f"the generators begin in another state in each process; seed them by fixed numbers: {calls}"
        )
    if devices:
        kernels = "kernels that add in any order: torch.use_deterministic_algorithms(True) refuses them"
        return Cause("kernels", f"{kernels}; or a seed that is another one each time")
    return Cause("clock", "a seed that is another one each time, such as the time, or the clock or the host in args")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what the script left behind: loader workers that outlive a killed parent, and itself when time is up."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
