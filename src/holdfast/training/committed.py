"""One save of a run, finished or on its way."""

from __future__ import annotations

import threading

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """What a finished save wrote.

    Attributes:
        bytes: of all files of the checkpoint.
        changed: of those that were written; the others are linked from the checkpoint before.
        seconds: from the call to the commit.
        pruned: steps that the retention rules let go after it.
    """

    bytes: int
    changed: int
    seconds: float
    pruned: list[int]


class Committed:
    """One save of a run. In the background it is on its way when ``run.save`` returns.

    ``bytes``, ``changed``, ``seconds``, ``pruned`` and ``gb_per_second`` wait until it is committed, and raise what it
    failed of.

    Attributes:
        step: items of the loader done.
        path: the checkpoint's folder.
        stall: seconds for which the training stood still: the whole save, or in the background the call and the copy
            before an optimizer's step.

    Example:
        >>> import holdfast, torch
        >>> run = holdfast.Run("runs/stall", model=torch.nn.Linear(2, 1), background=True)
        >>> saved = run.save(step=1)
        >>> saved.step, saved.wait().done
        (1, True)
        >>> saved.stall < saved.seconds
        True
        >>> run.close()
    """

    def __init__(self, step: int, path: str) -> None:
        self.step = step
        self.path = path
        self.stall = 0.0
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None

    def end(self, outcome: Outcome | BaseException) -> None:
        """Says how the save ended; once, by the thread that made it."""
        if isinstance(outcome, Outcome):
            self._outcome = outcome
        else:
            self._error = outcome
        self._ended.set()

    @property
    def done(self) -> bool:
        """Whether it is committed. Never waits."""
        return self._outcome is not None

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None while it is on its way, and when it is committed. Never waits."""
        return self._error

    def wait(self) -> Committed:
        """Returns when the checkpoint is on the disk.

        Raises:
            StorageError: the disk is full or failed; every older checkpoint is intact.
            SnapshotTorn: the program wrote into a tensor meanwhile; the run saves again by itself.
        """
        self._result()
        return self

    def _result(self) -> Outcome:
        self._ended.wait()
        if self._outcome is None:
            raise self._error or RuntimeError("a save ended without an outcome")
        return self._outcome

    @property
    def bytes(self) -> int:
        """Of all files of the checkpoint but its manifest."""
        return self._result().bytes

    @property
    def changed(self) -> int:
        """Bytes that were written; the rest is linked from the checkpoint before."""
        return self._result().changed

    @property
    def seconds(self) -> float:
        """From the call to the commit."""
        return self._result().seconds

    @property
    def pruned(self) -> list[int]:
        """Steps that the retention rules let go after it."""
        return self._result().pruned

    @property
    def gb_per_second(self) -> float:
        """Bytes written, in units of 1e9, by seconds."""
        return self.changed / self.seconds / 1e9

    def __repr__(self) -> str:
        if self._outcome is None:
            return f"Committed(step={self.step}, {'saving' if self._error is None else f'failed: {self._error}'})"
        return (
            f"Committed(step={self.step}, {self.bytes:,} bytes, {self.changed:,} written, {self.seconds:.3f} s, "
            f"stall {1e3 * self.stall:.1f} ms)"
        )
