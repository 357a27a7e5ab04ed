"""Loads programs with plain torch and calls them: prints where each marker appeared. Run in a folder of planted files.

``python program_control.py '["honest", "guard"]'`` looks at ``honest.pt2`` and the marker ``honest``, and so on.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import sys
import warnings

import torch

UNPACKED = "/tmp/aotinductor_*"
"""Where torch unpacks compiled members; it leaves them there."""


def stage(name: str) -> tuple[str | None, str]:
    """In which step the marker appeared, and what was raised."""
    step, reason = "load", "ran"
    try:
        program = torch.export.load(f"{name}.pt2")
        if not os.path.exists(name):
            step = "module"
            module = program.module()
            if not os.path.exists(name):
                step = "call"
                given, keywords = program.example_inputs
                module(*given, **keywords)
    except BaseException as error:  # whatever it is, the next one is looked at
        reason = f"{type(error).__name__}: {error}"[-300:]
    return (step if os.path.exists(name) else None), reason


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    sys.path.insert(0, os.getcwd())
    before = set(glob.glob(UNPACKED))
    print(json.dumps({name: stage(name) for name in json.loads(sys.argv[1])}))
    for left in set(glob.glob(UNPACKED)) - before:
        shutil.rmtree(left, ignore_errors=True)
