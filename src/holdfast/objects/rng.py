"""Random number generators: Python's, numpy's, torch's on the CPU and on every accelerator."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from holdfast.errors import CorruptFile


def capture_rng() -> dict[str, Any]:
    """The state of every global generator, as plain values and byte tensors.

    numpy's is left out when the program never imported numpy; it can't have drawn from it then.
    """
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, Any], file: str = "checkpoint") -> list[str]:
    """Puts the generators back; returns notes on what could not be put back here.

    Raises:
        CorruptFile: a state that its generator does not take; a wrong random state must not pass as success, and all
            generators are left as they were.
    """
    before = capture_rng()
    try:
        return _set(state)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as reason:
        _set(before)
        raise CorruptFile(f"`{file}`: its random state can't be restored: {reason}", file=file, path="rng") from reason


def _set(state: dict[str, Any]) -> list[str]:
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy

        numpy.random.set_state(state["numpy"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    return _restore_cuda(state["cuda"]) if "cuda" in state else []


def _restore_cuda(states: list[torch.Tensor]) -> list[str]:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, state in enumerate(states[:here]):
        torch.cuda.set_rng_state(state, index)
    if here == len(states):
        return []
    return [f"random state of {len(states)} CUDA devices was saved, {here} are here: runs on are not bit-identical"]
