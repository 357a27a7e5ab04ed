"""Both implementations of the same two functions, for tests that compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from holdfast import compat


class Pair(NamedTuple):
    """Who saves and who loads."""

    save: Callable[..., Any]
    load: Callable[..., Any]


PAIRS = {
    "ours to ours": Pair(compat.save, compat.load),
    "ours to torch": Pair(compat.save, torch.load),
    "torch to ours": Pair(torch.save, compat.load),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Every pair that has one of ours in it."""
    return PAIRS[request.param]


@pytest.fixture(params=["zip", "stream"])
def layout(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The keyword of save for both containers."""
    return {"_use_new_zipfile_serialization": request.param == "zip"}
