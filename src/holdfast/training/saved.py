"""One committed checkpoint of a run, in the program that wrote it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from holdfast.errors import ArgumentError
from holdfast.objects.module import unwrap
from holdfast.policy.report import LoadReport
from holdfast.runs.manifest import Manifest, read_manifest
from holdfast.transfer.opened import opened_document
from holdfast.transfer.restore import RestoreOptions, restore_objects

BUILT: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that were built from a checkpoint: what they hold is saved, and an audit has nothing to say about them."""


class SavedCheckpoint:
    """A committed checkpoint; ``run.best`` and ``run.last`` give one.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: str, objects: Mapping[str, Any]) -> None:
        self.path = path
        self._objects = objects

    @property
    def manifest(self) -> Manifest:
        """Step, epoch, metrics and environment."""
        return read_manifest(self.path)

    @property
    def step(self) -> int:
        """Items of the loader done when it was saved."""
        return self.manifest.step

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics that were committed with it."""
        return dict(self.manifest.metrics)

    def build(self, name: str | None = None, *, mode: Literal["eval", "train"] = "eval") -> nn.Module:
        """A fresh copy of a model of this program with the checkpoint's weights; the one in training is not touched.

        Args:
            name: which module of the run; needed when there are several.
            mode: ``"eval"`` or ``"train"``.

        Raises:
            ArgumentError: the run has no such module, or several and no name.
            CorruptFile: the checkpoint is damaged.
        """
        modules = {key: value for key, value in self._objects.items() if isinstance(value, nn.Module)}
        if name is None and len(modules) == 1:
            (name,) = modules
        if name not in modules:
            raise ArgumentError(f"build needs the name of a module of the run: {', '.join(modules) or 'it has none'}")
        made = copy.deepcopy(unwrap(modules[name]))
        self.restore(mode=mode, **{name: made})
        for parameter in made.parameters():
            parameter.grad = None
        BUILT.add(made)
        return made

    def restore(self, *, mode: Literal["eval", "train"] | None = None, **objects: Any) -> LoadReport:
        """Restores into live objects, as ``holdfast.restore`` does."""
        with opened_document(self.path) as (document, file):
            return restore_objects(document, file, objects, RestoreOptions(mode=mode))

    def __repr__(self) -> str:
        return f"SavedCheckpoint({self.path!r})"
