"""A run whose loop belongs to a framework: it is fed its items by the run, and told where its epochs begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from holdfast.errors import MissingExtra
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.training.run import Run


def not_installed(package: str, reason: ImportError) -> MissingExtra:
    """The error for a framework that is not here, or older than what its file needs."""
    return MissingExtra(f"this needs {package}, which can't be imported here ({reason}): pip install -U {package}")


_ARGUMENTS = ("self", "epoch")
"""Names that ``run.end`` has a meaning for; what frameworks count under them is in the position."""


class Hosted:
    """A run under a framework's loop.

    Everything between two items (a commit, a signal) happens where the framework asks the loader for the next one.
    An epoch is committed where the next one begins: what a framework does behind an epoch, such as evaluation and the
    steps of schedulers, is then done.

    Args:
        run: not yet resumed; its objects must be what trains now.
        metrics: what was measured, asked for at the end of each epoch.

    Attributes:
        at: where training goes on; None at a fresh start.
        amid: whether items of an epoch were given that has not ended.
    """

    def __init__(self, run: Run, metrics: Callable[[], Mapping[str, Any]]) -> None:
        self.run = run
        try:
            self.at = run.resume()
        except BaseException:
            run.close()  # the program may catch it, mend what does not fit, and try again
            raise
        self.amid = False
        self._metrics = metrics
        self._rng = capture_rng() if self.at is not None and not self.at.batch else None

    def feed(self, loader: Iterable[Any]) -> Fed:
        """The loader to give the framework in place of ``loader``."""
        return Fed(self, loader)

    def items(self, loader: Iterable[Any]) -> Iterator[Any]:
        """One pass over what is left of the present epoch."""
        for item in self.run.batches(loader):
            self.amid = True
            yield item

    def epoch_begins(self) -> None:
        """Ends the epoch before. The first one of a resumed run gets the random state that it would have had."""
        if self.amid:
            self._end()
        elif self._rng is not None:
            restore_rng(self._rng, self.run.path)  # whatever the framework drew when it set itself up
        self._rng = None

    def finish(self, *, complete: bool = True) -> None:
        """Commits the end of the training.

        Args:
            complete: whether the last epoch ran to its end, not only to a number of steps.
        """
        if self.amid and (not complete or not self._end()):
            self.run.save(metrics={} if complete else self.numbers())
        self.amid = False
        self.run.wait()

    def fail(self, error: BaseException) -> None:
        """Lets go of the run when an error ends the training."""
        self.run.__exit__(type(error), error, None)

    def _end(self) -> bool:
        self.amid = False
        return self.run.end(self.run.position.epoch, **self.numbers()) is not None

    def numbers(self) -> dict[str, float]:
        """What was measured, without what is no number."""
        measured = self._metrics().items()
        return {name: float(value) for name, value in measured if _is_number(value) and name not in _ARGUMENTS}


class Fed:
    """A loader whose items come through the run; all else is the loader's own.

    Args:
        hosted: of the run.
        loader: the framework's.
    """

    def __init__(self, hosted: Hosted, loader: Iterable[Any]) -> None:
        vars(self).update(_hosted=hosted, _loader=loader)

    def __iter__(self) -> Iterator[Any]:
        hosted: Hosted = self._hosted
        return hosted.items(self._loader)  # draws nothing before its first item is asked for

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_loader"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the run keeps the place. Frameworks warn of a loader that has none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing."""


def numbered(name: str, objects: Iterable[Any]) -> dict[str, Any]:
    """Objects of one kind by name: ``name`` for the only one, else ``name_0``, ``name_1``, ..."""
    found = list(objects)
    return {name: found[0]} if len(found) == 1 else {f"{name}_{index}": one for index, one in enumerate(found)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


class Kept:
    """Something of a framework as an object of a run, by two functions.

    Args:
        capture: gives its state: plain values and tensors.
        restore: takes it back.
    """

    def __init__(self, capture: Callable[[], Any], restore: Callable[[Any], Any]) -> None:
        self._capture, self._restore = capture, restore

    def state_dict(self) -> Any:
        """Its state."""
        return self._capture()

    def load_state_dict(self, state: Any) -> None:
        """Takes its state back."""
        self._restore(state)
