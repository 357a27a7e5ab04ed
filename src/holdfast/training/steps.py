"""Whether optimizers step: a save waits for the end of a gradient accumulation, and never falls into a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


class StepWatch:
    """Hears of every step of the optimizers.

    Args:
        objects: of a run; those that are no optimizers are passed over.

    Attributes:
        stepped: whether one has stepped since the present item began.
        stepping: whether one is in its step, or was left in the middle of it by an error.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        self.stepped = self.stepping = False
        self._hooks: list[Any] = []
        for value in objects:
            if isinstance(value, Optimizer):
                self._hooks.append(value.register_step_pre_hook(self._before))
                self._hooks.append(value.register_step_post_hook(self._after))

    @property
    def accumulating(self) -> bool:
        """Whether gradients wait for a step; they are in no state_dict."""
        return bool(self._hooks) and not self.stepped

    def _before(self, *_: Any) -> None:
        self.stepping = True

    def _after(self, *_: Any) -> None:
        self.stepped, self.stepping = True, False

    def stop(self) -> None:
        """Lets go of the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
