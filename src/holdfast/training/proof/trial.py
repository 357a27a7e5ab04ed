"""What decides about the runs of this process beside the program itself: nothing, unless the program is on trial.

``holdfast prove`` runs a user's script in a process that calls :func:`put_on_trial` first. Each run that the script
makes then asks the trial where to live and which save rules to add, and shows itself when it is made.
"""

from __future__ import annotations

from typing import Any, Protocol


class Trial(Protocol):
    """What watches the runs of a process."""

    def begins(self, root: str, save: str) -> tuple[str, str]:
        """The folder and the save rules of a run that is about to be made, from those that the program gives."""
        ...

    def made(self, run: Any) -> None:
        """A run was made, in the folder that ``begins`` gave."""
        ...


class _NoTrial:
    def begins(self, root: str, save: str) -> tuple[str, str]:
        return root, save

    def made(self, run: Any) -> None:
        return


_trial: Trial = _NoTrial()


def put_on_trial(trial: Trial) -> None:
    """From now on the runs of this process are directed by ``trial``."""
    global _trial  # noqa: PLW0603  # a process is on trial or not, as it has one current folder
    _trial = trial


def current() -> Trial:
    """The trial of this process; one that changes nothing if there is none."""
    return _trial
