"""The half of torch that has no annotations; whoever calls it says ``untyped.serialization.StorageType(...)``."""

from __future__ import annotations

from typing import Any

import torch

untyped: Any = torch
