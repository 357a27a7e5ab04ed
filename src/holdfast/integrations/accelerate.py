"""Accelerate: a run of everything that an ``Accelerator`` has prepared, in one line."""

from __future__ import annotations

import os
from typing import Any

import torch

from holdfast.errors import ArgumentError
from holdfast.integrations.hosting import Kept, not_installed, numbered
from holdfast.training.run import Run

try:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]
except ImportError as reason:
    raise not_installed("accelerate", reason) from None


def run(accelerator: Accelerator, root: str | os.PathLike[str], **options: Any) -> Run:
    """A ``holdfast.Run`` of what ``accelerator.prepare`` and ``register_for_checkpointing`` were given so far.

    It takes the place of ``save_state``, ``load_state`` and ``skip_first_batches``: models, optimizers, schedulers,
    the scaler, registered objects, random states and the place in the data are in each commit, and a training that is
    started again goes on where it was.

    Args:
        accelerator: after ``prepare``.
        root: the run's folder.
        **options: those of ``holdfast.Run``: ``best``, ``keep``, ``save``, ``background``, ``args``, ``start_from``,
            ``resume``; and other objects by name.

    Returns:
        The run, for ``run.epochs(n)``, ``run.batches(loader)`` and ``run.end(epoch, ...)``.

    Raises:
        ArgumentError: nothing was prepared yet, or loaders with ``use_stateful_dataloader``.
        RunLocked: another process writes this run.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from holdfast.integrations.accelerate import run
        >>> accelerator = Accelerator(cpu=True)
        >>> net = accelerator.prepare(torch.nn.Linear(2, 1))
        >>> with run(accelerator, "runs/accelerate") as kept:
        ...     saved = kept.save(step=1)
    """
    if not accelerator._models and not accelerator._optimizers:
        raise ArgumentError(
            f"`{os.fspath(root)}`: the accelerator has prepared nothing yet; call this behind prepare()"
        )
    if any(getattr(loader, "use_stateful_dataloader", False) for loader in accelerator._dataloaders):
        raise ArgumentError(
            f"`{os.fspath(root)}`: with use_stateful_dataloader=True the order of the data is drawn when a loader is "
            "prepared, and can't be drawn again: leave it out, the run keeps the place in any loader"
        )
    for sampler in _seedable(accelerator):
        sampler.generator = sampler.generator or torch.Generator()  # it would come with its first pass; seeded there
    counted = Kept(lambda: _counts(accelerator, kept), lambda state: _set(accelerator, state))
    kept = Run(root, accelerate=counted, **_objects(accelerator), **options)
    return kept


def _objects(accelerator: Accelerator) -> dict[str, Any]:
    """The objects themselves: what wraps an optimizer is stepped through it, and does not know when."""
    return {
        **numbered("model", accelerator._models),
        **numbered("optimizer", [getattr(one, "optimizer", one) for one in accelerator._optimizers]),
        **numbered("scheduler", [getattr(one, "scheduler", one) for one in accelerator._schedulers]),
        **numbered("registered", accelerator._custom_objects),
        "scaler": accelerator.scaler,
    }


def _counts(accelerator: Accelerator, run: Run) -> dict[str, Any]:
    """What the accelerator counts: the place in a gradient accumulation, and the passes over each loader."""
    at = run.position
    passes = [getattr(loader, "iteration", 0) for loader in accelerator._dataloaders]
    # a pass that is over counts already, also when its epoch has not ended for the run
    passes = [n - (at.batch > 0 and n == at.epoch + 1) for n in passes]
    return {"step": accelerator.step, "passes": passes, "seeds": [one.initial_seed for one in _seedable(accelerator)]}


def _set(accelerator: Accelerator, state: dict[str, Any]) -> None:
    accelerator.step = state["step"]
    for loader, passes in zip(accelerator._dataloaders, state["passes"], strict=False):
        if hasattr(loader, "iteration"):
            loader.iteration = passes
    for sampler, seed in zip(_seedable(accelerator), state["seeds"], strict=False):
        sampler.initial_seed = seed


def _seedable(accelerator: Accelerator) -> list[SeedableRandomSampler]:
    """The samplers whose order follows from a seed and the number of the pass."""
    samplers = [getattr(loader, "get_sampler", lambda: None)() for loader in accelerator._dataloaders]
    return [one for one in samplers if isinstance(one, SeedableRandomSampler)]
