"""What the tests of the integrations share."""

from __future__ import annotations

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
