"""What the tests of the integrations share."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator

import pytest
import torch

with warnings.catch_warnings():  # it scripts functions when it is imported
    warnings.filterwarnings("ignore", ".*torch.jit.* is deprecated", DeprecationWarning)
    import ignite.metrics  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread(seeded: int) -> Iterator[None]:
    """Sums in one order, from one seed: the same bits each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def signals_are_let_go() -> Iterator[None]:
    """A run that is over has no handler left. Lightning leaves its own behind when an error ends a fit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    left = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert not [handler for handler in left if "holdfast" in f"{getattr(handler, '__module__', '')} {handler!r}"]
