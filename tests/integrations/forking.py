"""A child process for a training that is killed: forked, so that no framework is imported twice."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable


def ends_with(work: Callable[[], object]) -> int:
    """Does something in a child; its exit code, negative for the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forking beside threads
        pid = os.fork()
    if pid == 0:
        os._exit(_code(work))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _code(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
