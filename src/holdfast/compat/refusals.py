"""Errors in the words and types of torch, which programs and people search for."""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.errors import ArgumentError, HoldfastError, NotFound

_DOCS = (
    "\n\nCheck the documentation of torch.load to learn more about types accepted by default with "
    "weights_only https://pytorch.org/docs/stable/generated/torch.load.html."
)
UNSAFE = (
    "In PyTorch 2.6, we changed the default value of the `weights_only` argument in `torch.load` from `False` to "
    "`True`. Re-running `torch.load` with `weights_only` set to `False` will likely succeed, but it can result in "
    "arbitrary code execution. Do it only if you got the file from a trusted source."
)


def weights_only_message(message: str) -> str:
    """What torch says around the refusal of its ``weights_only`` unpickler."""
    if re.search(r"GLOBAL (\S+) was not an allowed global by default.", message):
        return (
            "Weights only load failed. This file can still be loaded, to do so you have two options, "
            "\033[1mdo those steps only if you trust the source of the checkpoint\033[0m. "
            f"\n\t(1) {UNSAFE}\n\t(2) Alternatively, to load with `weights_only=True` please check the recommended "
            f"steps in the following error message.\n\tWeightsUnpickler error: {message}{_DOCS}"
        )
    if re.search(r"(\S+) must be (\S+) to load", message):
        return f"Weights only load failed. {message}\n {UNSAFE}\n"
    text = f"Weights only load failed. {UNSAFE}\n"
    if not re.search(r"whose module (\S+) is blocked", message):
        text += (
            "Please file an issue with the following so that we can make `weights_only=True` compatible with your use "
            "case: WeightsUnpickler error: "
        )
    return f"{text}\n\n{message}{_DOCS}"


@contextmanager
def weights_only_refusals() -> Iterator[None]:
    """Says around a refusal what torch says around it."""
    try:
        yield
    except pickle.UnpicklingError as reason:
        raise pickle.UnpicklingError(weights_only_message(str(reason))) from None


@contextmanager
def torch_errors(before: str = "") -> Iterator[None]:
    """Raises the errors of holdfast as those of torch; ``__cause__`` has the original with its file and offset.

    Args:
        before: what torch says first in such a case.
    """
    try:
        yield
    except NotFound as reason:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", reason.file) from reason
    except ArgumentError as reason:
        raise ValueError(str(reason)) from reason
    except HoldfastError as reason:
        raise RuntimeError(f"{before}{reason}") from reason
