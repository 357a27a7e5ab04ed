"""Data loaders: going on in the middle of an epoch with the very batches that would have come.

A loader with its own ``state_dict`` is asked for it. Any other DataLoader draws its order when an iterator begins, so
the random state of that moment is kept; on resume the order is drawn again from it, the batches that were done are
passed over without loading them, and then the random state of the save is put back. What is no such loader is read
again from its beginning up to its place. Source of what is drawn when: ``torch/utils/data/dataloader.py`` and
``sampler.py`` of torch 2.13, ``torchdata/stateful_dataloader`` of torchdata 0.11.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from holdfast.errors import ArgumentError, MismatchError
from holdfast.objects.order import (
    differences,
    generator_state,
    generators_of,
    parts_of,
    samplers_with_state,
    set_generator_state,
    settings_of,
)
from holdfast.objects.passing import SkippingSampler, Watched, pass_over
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.objects.stateful import Stateful, class_name

REFUSALS = (AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError)
"""What a loader or a generator raises when a state is none of its own."""


class LoaderPart:
    """The loader of a run.

    Args:
        loader: a DataLoader, a loader with its own state_dict, or any iterable that gives the same items each time.

    Attributes:
        warnings: what the latest ``begin`` or ``go_on`` found not to be as it was.
    """

    kind = "loader"

    def __init__(self, loader: Iterable[Any]) -> None:
        self.obj = loader
        self.warnings: list[str] = []
        # accelerate's loaders have the methods around a loader that has none, too, and are an item ahead of theirs
        self._own = isinstance(loader, Stateful) and not hasattr(loader, "base_dataloader")
        self._keeps_workers = bool(getattr(loader, "persistent_workers", False))
        self._active: Iterable[Any] = loader
        self._begun: dict[str, Any] | None = None
        self._reused = False
        self._watched: Watched | None = None
        self._look_around()

    def describe(self) -> dict[str, Any]:
        """What is recorded beside the state."""
        return {"kind": self.kind, "class": class_name(self.obj)}

    def capture(self, batch: int) -> dict[str, Any]:
        """The loader's place after ``batch`` items of this epoch."""
        over = self._watched is not None and self._watched.over
        state = {"batch": batch, "settings": self._settings, "generators": self._generator_states(), "over": over}
        if self._own:
            return {**state, "own": self._own_state()}
        return {
            **state,
            "begun": self._begun if batch else None,
            "reused": self._reused if batch else self._keeps_workers and self._begun is not None,
            "samplers": self._sampler_states(),
            "seen": self._watched.seen if self._watched is not None and batch else "",
        }

    def begin(self) -> Iterator[Any]:
        """An iterator over a whole epoch.

        Raises:
            ArgumentError: a generator that was read to its end already.
        """
        if self._once and self._watched is not None and self._watched.over:
            raise ArgumentError(
                f"`loader`: a {type(self.obj).__name__} can be read only once, and it was: give batches() a new one in "
                "each epoch, or the iterable that it is made from"
            )
        before, first = self._settings, self._watched is None
        self._look_around()
        same = not first and "epoch" in before and before == self._settings and self._settings.get("shuffle")
        self.warnings = [_same_order(before["epoch"])] if same else []
        return self._start()

    def _start(self) -> Iterator[Any]:
        self._begun = self._moment()
        self._reused = self._keeps_workers and getattr(self._active, "_iterator", None) is not None
        return self._watch(iter(self._active))

    def go_on(self, state: dict[str, Any], rng: dict[str, Any] | None) -> Iterator[Any]:
        """An iterator over the rest of an epoch.

        Args:
            state: what ``capture`` gave.
            rng: the random state of the save, put back when the order stands; None when the run keeps none, and then
                the random state that the program has now stays.

        Raises:
            MismatchError: it is not the loader that was saved, or not its data.
        """
        inside = state["batch"] > 0
        after = rng if rng is not None and inside else capture_rng()
        self.warnings = self._compared(state)
        if ("own" in state) != self._own:
            return self._start()  # another kind of loader at an epoch's beginning: inside one it was refused
        if self._own:
            return self._go_on_by_itself(state, after)
        if not inside and not state["reused"]:
            self._restore_generators(state)
            return self._start()
        moment = state["begun"] or self._moment(state)
        self._restore_moment(moment)
        iterator = self._rest(state, lambda: self._restore_moment(moment) if state["reused"] else None)
        self._begun, self._reused = moment, state["reused"]
        if inside:
            self._restore_generators({**state, "samplers": []})  # a sampler counts for itself when it begins
            restore_rng(after)
        return iterator

    def notes(self) -> list[str]:
        """What a resume from the middle of an epoch can't make bit-identical with this loader."""
        if isinstance(self.obj, DataLoader):
            return list(self._notes(self.obj))
        if self._once and not self._own:
            return [_once_only(type(self.obj).__name__)]
        return []

    def _notes(self, loader: DataLoader[Any]) -> Iterator[str]:
        streamed = isinstance(loader.dataset, IterableDataset)
        by_itself = self._own and isinstance(loader.dataset, Stateful)
        if loader.num_workers and not streamed and not by_itself:
            yield "random draws inside loader workers are not covered; the order of the data is"
        if loader.num_workers and not getattr(loader, "in_order", True):
            yield "with in_order=False the order depends on which worker is faster; it is not covered"
        if streamed and not by_itself:
            yield "an iterable dataset is read again up to its place; its order is its own business"
        for part in () if streamed else (loader.sampler, loader.batch_sampler):
            if not type(part).__module__.startswith(("torch.", "torchdata.", "builtins")) and not self._sets_itself(
                part
            ):
                yield (
                    f"the order of {type(part).__name__} is drawn again from the global random state and the "
                    "generators in its attributes; what else it keeps must be in a state_dict of its own"
                )

    def _sets_itself(self, sampler: Any) -> bool:
        return sampler is None or isinstance(sampler, Stateful) or hasattr(sampler, "set_epoch")

    # -- a loader with a place of its own ----------------------------------------------------------------------------

    def _own_state(self) -> Any:
        """Its state_dict; None for one that has not begun, which would begin, and draw, to tell it."""
        if getattr(self.obj, "_iterator", self) is None:
            return None
        return _copied(self.obj.state_dict())  # type: ignore[attr-defined]  # the next item changes it

    def _go_on_by_itself(self, state: dict[str, Any], after: dict[str, Any]) -> Iterator[Any]:
        if state["own"] is None:
            return self._start()
        inside = state["batch"] > 0
        try:
            iterator = self._with_own_state(state["own"], finished=state["over"], inside=inside)
        except REFUSALS as reason:
            raise MismatchError(
                f"`loader`: does not take the place that was saved: {type(reason).__name__} {reason}: build it as "
                "before",
                path="loader",
            ) from reason
        self._restore_generators({**state, "samplers": []})
        restore_rng(after)
        self._watched = None
        return self._watch(iter(self.obj) if iterator is None else iterator, over=inside and state["over"])

    def _with_own_state(self, own: Any, *, finished: bool, inside: bool) -> Iterator[Any] | None:
        """Its iterator at that place, or None when a new epoch begins."""
        self.obj.load_state_dict(own)  # type: ignore[attr-defined]  # it had one when it was saved
        if isinstance(self.obj, DataLoader):
            # torchdata's makes its iterator, and draws a seed for it, when it is next asked for anything: now, so that
            # the random state that is put back afterwards is the one that the next epoch draws from
            self.obj.state_dict()  # type: ignore[attr-defined]
            if not inside and not finished:
                iter(self.obj)  # an epoch that was left early is not gone on with
        if inside and finished:
            return iter(())
        return iter(self.obj) if inside else None

    # -- a loader that is brought to its place -----------------------------------------------------------------------

    def _rest(self, state: dict[str, Any], before: Callable[[], None]) -> Iterator[Any]:
        loader, count = self.obj, state["batch"]
        if not self._skips:
            watched = self._watch(iter(loader))
            before()
            pass_over(watched, count)
            if watched.seen != state["seen"]:
                self.warnings.append(
                    f"item {count} of this epoch is not the one that it was before the restart: from here on the data "
                    "may be other than in a training that was not stopped"
                )
            return watched
        # DataLoader refuses a new sampler on a live loader, so a shallow copy gets it, past that check
        resumed = copy.copy(loader)
        name = "batch_sampler" if getattr(loader, "batch_sampler", None) is not None else "sampler"
        sampler = SkippingSampler(getattr(loader, name), count, before)
        object.__setattr__(resumed, name, sampler)
        object.__setattr__(resumed, "_iterator", None)
        if self._keeps_workers:
            self._active = resumed  # its workers live on: the next epochs go through it, as they would have
        iterator = self._watch(iter(resumed))
        sampler.prime()
        return iterator

    @property
    def _skips(self) -> bool:
        """Whether items can be passed over without loading them: the loader asks its sampler for them, as torch's."""
        if not isinstance(self.obj, DataLoader) or isinstance(self.obj.dataset, IterableDataset):
            return False
        return type(self.obj).__iter__ is DataLoader.__iter__

    @property
    def _once(self) -> bool:
        return isinstance(self.obj, Iterator)

    def _watch(self, iterator: Iterator[Any], *, over: bool = False) -> Watched:
        self._watched = Watched(iterator, looking=not self._skips and not self._own)
        self._watched.over = over
        return self._watched

    def _compared(self, state: dict[str, Any]) -> list[str]:
        """What is not as it was saved; refused inside an epoch, whose order it changes."""
        inside = state["batch"] > 0
        self._look_around()
        before, here = dict(state["settings"]), dict(self._settings)
        if not inside:
            before.pop("epoch", None)  # the next one's, by now
            here.pop("epoch", None)
        found = differences(before, here)
        if ("own" in state) != self._own:
            found.append(f"it {'has' if self._own else 'had'} a state_dict, the other not")
        if found and inside:
            raise MismatchError(
                f"`loader`: stands in the middle of an epoch, and its order would be another: {', '.join(found)}: "
                "build and set it as before, or go back to the end of an epoch with resume='@step=...'",
                path="loader",
            )
        return [f"the loader is not the one that was saved: {', '.join(found)}"] if found else []

    # -- what it draws from ------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        parts = parts_of(self.obj)
        self._generators, self._samplers = generators_of(parts), samplers_with_state(parts)
        self._settings = settings_of(self.obj)

    def _moment(self, states: dict[str, Any] | None = None) -> dict[str, Any]:
        if states is None:
            states = {"generators": self._generator_states(), "samplers": self._sampler_states()}
        return {"rng": capture_rng(), "generators": states["generators"], "samplers": states["samplers"]}

    def _restore_moment(self, moment: dict[str, Any]) -> None:
        restore_rng(moment["rng"])
        self._restore_generators(moment)

    def _generator_states(self) -> list[Any]:
        return [generator_state(generator) for generator in self._generators]

    def _sampler_states(self) -> list[Any]:
        return [_copied(sampler.state_dict()) for sampler in self._samplers]

    def _restore_generators(self, states: dict[str, Any]) -> None:
        if len(self._generators) != len(states["generators"]):
            raise MismatchError(
                f"`loader`: {len(states['generators'])} generators were saved with it, it has {len(self._generators)}: "
                "build it as before",
                path="loader",
            )
        try:
            for generator, state in zip(self._generators, states["generators"], strict=True):
                set_generator_state(generator, state)
            for sampler, state in zip(self._samplers, states["samplers"], strict=False):
                sampler.load_state_dict(state)
        except REFUSALS as reason:
            raise MismatchError(
                f"`loader`: a generator or sampler does not take the state that was saved: {reason}: build it as "
                "before",
                path="loader",
            ) from reason


def _same_order(epoch: int) -> str:
    return (
        f"its sampler is still set to epoch {epoch}, so that the order is that of the epoch before: call "
        "loader.sampler.set_epoch(epoch) in each epoch"
    )


def _once_only(name: str) -> str:
    return (
        f"a {name} can be read only once: on a resume the program's new one is read up to its place, which is right if "
        "it gives the same items in each process"
    )


def _copied(tree: Any) -> Any:
    """A deep copy; a plain tree of a few values takes deepcopy longer than everything else of a save's moment."""
    if type(tree) is dict:
        return {key: _copied(value) for key, value in tree.items()}
    if type(tree) is list:
        return [_copied(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    return tree if isinstance(tree, int | float | str | None) else copy.deepcopy(tree)
