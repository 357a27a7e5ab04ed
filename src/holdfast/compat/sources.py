"""The source code of classes, which streams of torch < 1.6 carry beside each pickled module."""

from __future__ import annotations

import inspect
import warnings

import torch


def class_source(cls: type) -> tuple[str | None, str | None]:
    """Source and file of a class; None, None where there is no telling."""
    try:
        lines, _ = inspect.getsourcelines(cls)
        return "".join(lines), inspect.getsourcefile(cls)
    except (OSError, TypeError):
        return None, None


def check_source(cls: type, file: str | None, source: str | None) -> None:
    """Warns when a class is not written as it was when an object of it was saved."""
    if not file or not source:
        return
    found, _ = class_source(cls)
    if found is None:
        warn_unknown(cls)
    elif found != source:
        warnings.warn(
            f"source code of class '{torch.typename(cls)}' has changed. you can retrieve the original source code by "
            "accessing the object's source attribute or set `torch.nn.Module.dump_patches = True` and use the patch "
            "tool to revert the changes.",
            torch.serialization.SourceChangeWarning,
            stacklevel=2,
        )


def warn_unknown(cls: type) -> None:
    """Warns that a class can't be checked, since its source is not to be had."""
    warnings.warn(
        f"Couldn't retrieve source code for container of type {cls.__name__}. It won't be checked for correctness upon "
        "loading.",
        stacklevel=2,
    )
