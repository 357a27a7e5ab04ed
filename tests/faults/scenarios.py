"""What a run's folder goes through in a few saves, and what may be found in it at every moment of that.

A scenario prepares a folder and is then a generator: it does one thing after the other and yields, after each that has
returned, what has to be in the folder from then on. Whoever stops it somewhere knows the last thing that was promised
and the next one, and :func:`fault` says whether the folder lies between the two.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import holdfast
from holdfast.cli.main import INTERRUPTED, main
from holdfast.errors import HoldfastError, StorageError
from holdfast.runs import placing, shards
from holdfast.runs.layout import parse_step
from holdfast.runs.run_file import write_pin

Files = Mapping[str, bytes | None]
"""What is in a folder: bytes of each file by its path, None for a folder."""
Whole = Callable[[str, int], str | None]
"""(path, step) to what is wrong with the checkpoint or file at that path; None when it is the one of that step."""


# ---- objects whose every number follows from the step ---------------------------------------------------------------


SMALL = 24
"""Bytes that a file needs here to be linked: as many as the frozen part has."""
_shape = [3]


def vary(seed: int) -> None:
    """Other objects from here on: as many layers, and as wide, as the seed says."""
    chance = random.Random(seed)
    resize(*(chance.randint(1, 40) for _ in range(chance.randint(1, 4))))


def resize(*widths: int) -> None:
    """Other objects from here on, with layers of these widths."""
    _shape[:] = widths
    for made in (objects, state):
        made.cache_clear()


def share_small_files() -> None:
    """Lets a run link files that are too small for it otherwise; here all are."""
    placing.SPLIT = shards.SPLIT = SMALL


@functools.lru_cache(maxsize=1)
def objects() -> dict[str, Any]:
    """A model with a frozen part, its optimizer, and a model that never changes; made once, since it takes time."""
    torch.manual_seed(0)
    body = nn.Sequential(*(nn.Linear(before, after) for before, after in itertools.pairwise([2, *_shape])))
    net = nn.ModuleDict({"body": body, "norm": nn.BatchNorm1d(3), "frozen": nn.Linear(3, 2)})
    net["frozen"].requires_grad_(False)
    opt = torch.optim.SGD([*body.parameters(), *net["norm"].parameters()], lr=0.1, momentum=0.9)
    return {"model": net, "opt": opt, "teacher": nn.Linear(2, 2).requires_grad_(False)}


def put(step: int) -> dict[str, Any]:
    """The objects with the numbers of a step."""
    live = objects()
    with torch.no_grad():
        for index, parameter in enumerate(live["opt"].param_groups[0]["params"]):
            numbers = torch.arange(float(parameter.numel())).reshape(parameter.shape)
            parameter.copy_(numbers + 100 * index + 1000 * step)
            live["opt"].state[parameter] = {"momentum_buffer": numbers - step}
        live["model"]["norm"].running_mean.fill_(step)
    return live


def step_once() -> None:
    """A step of the optimizer, as a training makes it: what is being saved has been copied after it."""
    opt = objects()["opt"]
    for parameter in opt.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    opt.zero_grad()


@functools.lru_cache(maxsize=64)
def state(step: int) -> dict[str, Any]:
    """The state_dicts of the objects at a step, as copies; the objects stay as they are."""
    before = copied()
    put(step)
    wanted = copied()
    for name, part in objects().items():
        part.load_state_dict(before[name])
    return wanted


def copied() -> dict[str, Any]:
    """The state_dicts of the objects as they are, as copies."""
    return copy.deepcopy({name: part.state_dict() for name, part in objects().items()})


def same(found: Any, wanted: Any) -> bool:
    """Whether two trees are equal, every bit of them."""
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


def loaded_whole(path: str, step: int) -> str | None:
    """Reads a checkpoint or a file and compares it with what its step should have."""
    try:
        tree = holdfast.load(path)
        report = holdfast.verify(path)
    except HoldfastError as reason:
        return str(reason)
    if report.status != "OK":
        return str(report)
    mixed = [name for name, wanted in state(step).items() if not same(tree[name], wanted)]
    return f"holds other numbers of {mixed} than those of step {step}" if mixed else None


# ---- what is promised -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promised:
    """What has to be there.

    Attributes:
        steps: committed steps in the run's folder.
        superseded: steps in ``superseded/``.
        quarantined: steps in ``quarantine/``.
        damaged: steps that are not whole.
        spare: steps that may be there: the disk failed when they were to be deleted.
        pins: name to step.
        noted: lines of metrics without a commit in run.json; None while there is no run.json.
        files: single files, name to the step that they hold.
    """

    steps: frozenset[int] = frozenset()
    superseded: frozenset[int] = frozenset()
    quarantined: frozenset[int] = frozenset()
    damaged: frozenset[int] = frozenset()
    spare: frozenset[int] = frozenset()
    pins: Mapping[str, int] = field(default_factory=dict)
    noted: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)


class Found(NamedTuple):
    """The names in a folder, sorted by what they are."""

    steps: set[int]
    superseded: set[int]
    quarantined: set[int]
    pins: dict[str, int]
    noted: int | None
    files: set[str]
    leftovers: list[str]
    strange: list[str]


def find(files: Files, run: str) -> Found:
    """What the names say; ``run`` is the name of the run's folder among them."""
    found = Found(set(), set(), set(), {}, _noted(files.get(f"{run}/run.json")), set(), [], [])
    for name, data in files.items():
        *above, last = name.split("/")
        place = "/".join(above)
        if last.startswith(".") and last.endswith((".partial", ".deleting")):
            found.leftovers.append(name)
        elif any(part.startswith((".step-", "step-")) for part in above):
            continue  # inside a checkpoint, which is judged as a whole
        elif place == run and parse_step(last) is not None:
            found.steps.add(parse_step(last) or 0)
        elif place in (f"{run}/superseded", f"{run}/quarantine") and parse_step(last) is not None:
            (found.superseded if place.endswith("superseded") else found.quarantined).add(parse_step(last) or 0)
        elif place == f"{run}/pins":
            found.pins[last] = parse_step((data or b"").decode("ascii", "replace").strip()) or -1
        elif not above and data is not None:
            found.files.add(last)
        elif name not in (run, *(f"{run}/{known}" for known in ("run.json", ".lock", "pins", "superseded"))):
            found.strange.extend([name] if name != f"{run}/quarantine" else [])
    return found


def _noted(data: bytes | None) -> int | None:
    if data is None:
        return None
    try:
        return len(json.loads(data)["uncommitted"])
    except ValueError:
        return -1


def between(stages: Sequence[Promised], promised: int, *, failing: bool = False) -> tuple[Promised, Promised]:
    """What is promised after ``promised`` things have returned, and what comes next.

    With ``failing`` the disk did: what should have been deleted may still be there.
    """
    before, after = stages[promised], stages[min(promised + 1, len(stages) - 1)]
    earlier = frozenset().union(*(stage.steps for stage in stages[:promised])) if failing else frozenset[int]()
    return replace(before, spare=earlier - before.steps - before.superseded - before.quarantined), after


def fault(files: Files, before: Promised, after: Promised, whole: Whole, *, run: str = "run") -> str | None:
    """What is wrong with a folder that was promised to be ``before`` and was on its way to ``after``."""
    found = find(files, run)
    wrong = _lost(found, before, after) or _mixed(found, before, after)
    if wrong is not None:
        return wrong
    for place, steps in ((run, found.steps), (f"{run}/superseded", found.superseded)):
        for step in sorted(steps - before.damaged):
            wrong = whole(f"{place}/step-{step:08d}", step)
            if wrong is not None:
                return f"step {step} in {place}/: {wrong}"
    for name in sorted(found.files):
        wrongs = [whole(name, one.files[name]) for one in (before, after) if name in one.files]
        if None not in wrongs:
            return f"{name}: {wrongs[0]}"
    return None


def _lost(found: Found, before: Promised, after: Promised) -> str | None:
    """Whether something is missing that was promised."""
    for step in sorted(before.steps):
        superseded = step in found.superseded - before.superseded  # an older one of the same number may be there
        places = [step in found.steps, superseded, step in found.quarantined]
        stays, moves = step in after.steps, step in after.superseded | after.quarantined
        if stays and places != [True, False, False]:
            return f"step {step} was promised and is not in its place"
        if moves and sum(places) != 1:
            return f"step {step} moves and is in {sum(places)} places"
        if not (stays or moves or places[0]) and not (after.steps - before.steps) <= found.steps:
            return f"step {step} was deleted before the new one was committed"
    for kind in ("superseded", "quarantined"):
        if not getattr(before, kind) <= getattr(found, kind):
            return f"{kind} steps are gone"
    gone = [name for name in before.files if name in after.files and name not in found.files]
    return f"{gone[0]} is gone" if gone else None


def _mixed(found: Found, before: Promised, after: Promised) -> str | None:
    """Whether something is there that neither state has."""
    for kind in ("steps", "superseded", "quarantined"):
        more = getattr(found, kind) - getattr(before, kind) - getattr(after, kind)
        more -= before.spare if kind == "steps" else set()
        if more:
            return f"{kind}: {sorted(more)} should not be there"
    if any(found.pins.get(name) not in (before.pins.get(name), after.pins.get(name)) for name in found.pins) or any(
        found.pins.get(name) != step for name, step in before.pins.items() if after.pins.get(name) == step
    ):
        return f"pins are {found.pins}"
    if found.noted not in (before.noted, after.noted):
        return f"run.json has {found.noted} lines of metrics"
    if found.strange:
        return f"strange names: {found.strange}"
    more_files = found.files - set(before.files) - set(after.files)
    return f"strange files: {sorted(more_files)}" if more_files else None


# ---- scenarios ------------------------------------------------------------------------------------------------------


class Scenario(NamedTuple):
    """One story.

    Attributes:
        prepare: makes the folder that it begins with, and says what is in it.
        act: goes on from there; yields what is promised after each thing that has returned.
        saves: how many saves it has.
    """

    prepare: Callable[[Path], Promised]
    act: Callable[[Path, Promised], Iterator[Promised]]
    saves: int


def save_step(run: holdfast.Run, step: int, **metrics: float) -> None:
    """Gives the objects the numbers of a step and commits it; returns when it is durable."""
    put(step)
    run.save(step=step, metrics=metrics)
    run.wait()


def fill(root: Path, *steps: int, **options: Any) -> Promised:
    """A run with these checkpoints; the metric ``loss`` is the step."""
    with holdfast.Run(root / "run", **put(0), rng=False, **options) as run:
        for step in steps:
            save_step(run, step, loss=step)
    return Promised(frozenset(steps), noted=0)


def verb(*arguments: object) -> None:
    """A verb of the command line in this process; raises what it says when the machine failed it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main([str(argument) for argument in arguments])
    except SystemExit as left:
        if left.code == StorageError.exit_code:
            raise StorageError(said.getvalue()) from None
        if left.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        if left.code != 0:
            raise AssertionError(said.getvalue()) from None


def _first_saves(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0)) as run:
        run.resume()
        yield (now := replace(now, noted=0))
        for step in (1, 2):
            save_step(run, step)
            yield (now := replace(now, steps=now.steps | {step}))


def _saves_and_prunes(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0), rng=False, best="loss:min", keep="last:1") as run:
        run.resume()
        yield now
        save_step(run, 5, loss=5.0)
        yield (now := replace(now, steps=frozenset({1, 2, 5})))  # the best, the pinned, the newest
        save_step(run, 6, loss=0.5)
        yield replace(now, steps=frozenset({2, 6}))


def _pinned(root: Path) -> Promised:
    now = fill(root, 1, 2, 3, 4)
    write_pin(root / "run", "paper", 2)
    return replace(now, pins={"paper": 2})


def _goes_back(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0), rng=False, resume="@step=1") as run:
        yield now
        run.resume()
        yield (now := replace(now, steps=frozenset({1}), superseded=frozenset({2, 3})))
        save_step(run, 2)
        yield replace(now, steps=frozenset({1, 2}))


def _damaged(root: Path) -> Promised:
    now = fill(root, 1, 2, 3)
    (file,) = (root / "run" / "step-00000003").glob("entries.json")
    data = bytearray(file.read_bytes())
    data[30] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    return replace(now, damaged=frozenset({3}))


def _quarantines(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0), rng=False, keep="last:2") as run:
        run.resume()
        yield (now := replace(now, steps=frozenset({1, 2}), quarantined=frozenset({3})))
        save_step(run, 4)
        yield replace(now, steps=frozenset({2, 4}))


def _ends_epochs(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0), rng=False, save="2ep") as run:
        run.resume()
        yield now
        put(3)
        run.end(0, loss=1.0)
        yield (now := replace(now, noted=1))
        list(run.batches([None] * 2))  # step 3
        run.end(1, loss=2.0)
        run.wait()
        yield replace(now, steps=now.steps | {3})


def _saves_in_the_background(root: Path, now: Promised) -> Iterator[Promised]:
    with holdfast.Run(root / "run", **put(0), rng=False, keep="last:2", background=True) as run:
        run.resume()
        yield now
        for step in (2, 3):
            put(step)
            run.save(step=step)
            step_once()  # from here on the numbers may change again
        run.wait()
        yield replace(now, steps=frozenset({2, 3}))


def _verbs(root: Path, now: Promised) -> Iterator[Promised]:
    run = root / "run"
    verb("pin", f"{run}@step=1", "first")
    yield (now := replace(now, pins={"first": 1}))
    verb("pin", f"{run}@step=2", "first")
    yield (now := replace(now, pins={"first": 2}))
    verb("prune", run, "--keep", "last:1")
    yield (now := replace(now, steps=frozenset({2, 3})))
    verb("unpin", run, "first")
    yield replace(now, pins={})


def _files(root: Path) -> Promised:
    for name in ("a.pt", "b.safetensors"):
        holdfast.save(state(1), root / name)
    return Promised(files={"a.pt": 1, "b.safetensors": 1})


def _replaces_files(root: Path, now: Promised) -> Iterator[Promised]:
    for name in ("a.pt", "b.safetensors", "c.pt"):
        holdfast.save(state(2), root / name)
        yield (now := replace(now, files={**now.files, name: 2}))


SCENARIOS: dict[str, Scenario] = {
    "first saves": Scenario(lambda root: Promised(), _first_saves, 2),
    "saves that prune": Scenario(_pinned, _saves_and_prunes, 2),
    "going back": Scenario(lambda root: fill(root, 1, 2, 3), _goes_back, 1),
    "a damaged one": Scenario(_damaged, _quarantines, 1),
    "ends of epochs": Scenario(lambda root: fill(root, 1), _ends_epochs, 1),
    "in the background": Scenario(lambda root: fill(root, 1), _saves_in_the_background, 2),
    "verbs": Scenario(lambda root: fill(root, 1, 2, 3), _verbs, 0),
    "single files": Scenario(_files, _replaces_files, 3),
}
RUNS = [name for name in SCENARIOS if name != "single files"]
"""Those that have a run, named ``run``, to go on with."""


def go_on(root: Path) -> str | None:
    """The next writer of the folder: it resumes from a whole checkpoint, saves, and leaves nothing unfinished."""
    if not (root / "run").is_dir():
        return None
    with holdfast.Run(root / "run", **put(0), rng=False) as run:
        at = run.resume()
        step = at.step if at else 0
        if at and not same(copied(), state(step)):
            return f"resumed at step {step} with other numbers"
        save_step(run, step + 10)
    wrong = loaded_whole(f"{root / 'run'}@last", step + 10)
    left = [path.name for path in root.rglob(".*") if path.name.endswith((".partial", ".deleting"))]
    return wrong or (f"the next save left {left}" if left else None)
