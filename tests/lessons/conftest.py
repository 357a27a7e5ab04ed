"""What the lessons share: a small model, the disk's limit, a model's bits."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

Net = Callable[..., nn.Sequential]


@pytest.fixture
def net() -> Net:
    """net(seed) makes a small model with weights drawn from the seed."""

    def make(seed: int = 0, outputs: int = 2) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, outputs))

    return make


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """same(a, b) says whether two modules or state_dicts have the same names and the same bits."""

    def equal(left: Any, right: Any) -> bool:
        one, other = (part.state_dict() if isinstance(part, nn.Module) else part for part in (left, right))
        return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)

    return equal


@pytest.fixture
def small_disk() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """small_disk(n) is a block in which the system writes no file past n bytes, as a full disk would not."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
