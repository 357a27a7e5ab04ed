"""The power goes after any call of a whole story of a run: whatever was promised is there, whatever is there is whole.

The same check is then turned on runs that leave out one kind of fsync; it must find every one of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.scenarios import RUNS, SCENARIOS, Promised, between, fault, go_on, loaded_whole
from tests.faults.simulated_disk import Recording, State, installed, on_disk, write_state

pytestmark = pytest.mark.usefixtures("small_files_are_linked")

Skip = tuple[str, str]
"""Which calls of fsync are left out: ``("file", part of its path)`` or ``("folder", end of its path)``."""


class Forgetful(Recording):
    """Leaves out some calls of fsync."""

    skip: Skip = ("", "")

    def fsync(self, fd: int) -> None:
        if not (self.skip[0] == "file" and self.skip[1] in os.readlink(f"/proc/self/fd/{fd}")):
            super().fsync(fd)

    def fsync_folder(self, path: str) -> None:
        if not (self.skip[0] == "folder" and os.path.realpath(path).endswith(self.skip[1])):
            super().fsync_folder(path)


class Judge:
    """Compares each state with what has been promised so far.

    Attributes:
        states: how many it saw.
        calls: after which calls.
        wrong: what was wrong with some.
        sample: a few states, to be tried for real.
    """

    def __init__(self, root: Path, stages: list[Promised], keep: float) -> None:
        self.states = 0
        self.calls: set[str] = set()
        self.wrong: list[str] = []
        self.sample: list[tuple[State, Promised, Promised]] = []
        self._root, self._stages, self._at = root, stages, 0
        self._chance, self._keep = random.Random(len(stages)), keep
        self._known: dict[tuple[str, int], list[State]] = {}  # several: a step may be saved again after going back
        self._learn()

    def promised(self) -> None:
        """The next thing has been promised."""
        self._at += 1
        self("the promise", iter(()))

    @property
    def now(self) -> tuple[Promised, Promised]:
        """What is promised, and what will be next."""
        return between(self._stages, self._at)

    def __call__(self, call: str, states: Iterator[State]) -> None:
        self.calls.add(call)
        if call == "rename":
            self._learn()
        for state in states:
            self.states += 1
            wrong = fault(state, *self.now, lambda path, step, state=state: self._whole(state, path, step))
            if wrong:
                self.wrong.append(f"after {call}: {wrong}")
            if self._chance.random() < self._keep:
                self.sample.append((state, *self.now))

    def _learn(self) -> None:
        """Keeps the bytes of every checkpoint and file that is in its place and whole, as the real disk has it."""
        files = on_disk(self._root)
        steps = {step for stage in self._stages for step in (*stage.steps, *stage.superseded, *stage.files.values())}
        for step in steps:
            for path in (f"run/step-{step:08d}", *(name for name in files if "/" not in name and name != "run")):
                known = self._known.setdefault((os.path.basename(path), step), [])
                if path in files and (found := _inside(files, path)) not in known:
                    known.extend([found] if loaded_whole(f"{self._root / path}", step) is None else [])

    def _whole(self, state: State, path: str, step: int) -> str | None:
        found = _inside(state, path)
        known = self._known.get((os.path.basename(path), step), [])
        return None if found in known else f"is not what was saved: {sorted(found)}"


def _inside(files: State, path: str) -> State:
    return {name[len(path) :]: data for name, data in files.items() if name == path or name.startswith(f"{path}/")}


def cut_everywhere(name: str, root: Path, *, most: int, keep: float = 0.0, skip: Skip | None = None) -> Judge:
    """Plays a scenario once and judges every state that a power cut after any of its calls may leave."""
    scenario = SCENARIOS[name]
    (root / "dry").mkdir(parents=True)
    first = scenario.prepare(root / "dry")
    stages = [first, *scenario.act(root / "dry", first)]
    here = root / "here"
    here.mkdir()
    scenario.prepare(here)
    judge = Judge(here, stages, keep)
    recording = Forgetful(here, judge, most)
    if skip is not None:
        recording.skip = skip
    with installed(recording):
        for _ in scenario.act(here, first):
            judge.promised()
            judge("the promise", recording.disk.after_power_cut(most))
    return judge


def tried(judge: Judge, root: Path) -> list[str]:
    """Writes the sample to a real disk, reads it with everything that holdfast checks, and goes on with it."""
    wrong = []
    for number, (state, before, after) in enumerate(judge.sample):
        here = root / str(number)
        here.mkdir(parents=True)
        write_state(state, here)
        files = on_disk(here)
        found = fault(files, before, after, lambda path, step, here=here: loaded_whole(f"{here / path}", step))
        found = found or go_on(here)
        wrong.extend([found] if found else [])
    return wrong


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut_after_every_call_of_a_run(name: str, tmp_path: Path) -> None:
    judge = cut_everywhere(name, tmp_path, most=40, keep=0.002)
    assert judge.wrong == []
    assert judge.states > 60
    assert tried(judge, tmp_path / "tried") == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut_with_many_more_states(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    judge = cut_everywhere(name, tmp_path, most=1500, keep=0.05)
    assert judge.wrong == []
    assert tried(judge, tmp_path / "tried") == []
    record_property("counted", f"power cut, {name}: {judge.states:,} states, {len(judge.sample)} of them resumed")


@pytest.mark.parametrize(
    ("name", "skip", "expected"),
    [
        ("first saves", ("file", ".safetensors"), "is not what was saved"),
        ("first saves", ("file", "entries.json"), "is not what was saved"),
        ("first saves", ("file", "state.json"), "is not what was saved"),
        ("first saves", ("file", "manifest.json"), "is not what was saved"),
        ("first saves", ("file", "run.json"), "lines of metrics"),
        ("first saves", ("folder", ".partial"), "is not what was saved"),
        ("first saves", ("folder", "/run"), "was promised and is not in its place"),
        ("first saves", ("folder", "/here"), "was promised and is not in its place"),
        ("saves that prune", ("folder", "/run"), "deleted before the new one was committed"),
        ("going back", ("folder", "/run"), "was promised and is not in its place"),
        ("verbs", ("file", "/pins/"), "pins are"),
        ("verbs", ("folder", "/pins"), "pins are"),
        ("single files", ("file", "a.pt"), "is not what was saved"),
        ("single files", ("file", "b.safetensors"), "is not what was saved"),
        ("single files", ("folder", "/here"), "is not what was saved"),
    ],
    ids=str,
)
def test_a_missing_fsync_is_found(name: str, skip: Skip, expected: str, tmp_path: Path) -> None:
    judge = cut_everywhere(name, tmp_path, most=12, skip=skip)
    assert any(expected in wrong for wrong in judge.wrong), judge.wrong[:5]


@pytest.mark.usefixtures("files_go_past_the_cache")
@pytest.mark.parametrize("name", ["first saves", "in the background"])
def test_power_cut_while_files_are_written_past_the_page_cache(name: str, tmp_path: Path) -> None:
    judge = cut_everywhere(name, tmp_path, most=40, keep=0.002)
    assert judge.wrong == []
    assert "open_direct" in judge.calls
    assert tried(judge, tmp_path / "tried") == []
    forgetful = cut_everywhere(name, tmp_path / "forgetful", most=12, skip=("file", ".safetensors"))
    assert any("is not what was saved" in wrong for wrong in forgetful.wrong)


def test_every_story_has_a_run_to_go_on_with(tmp_path: Path) -> None:
    for name in RUNS:
        (tmp_path / name).mkdir()
        first = SCENARIOS[name].prepare(tmp_path / name)
        assert list(SCENARIOS[name].act(tmp_path / name, first))
        assert go_on(tmp_path / name) is None
