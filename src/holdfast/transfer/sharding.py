"""A restore into tensors that several processes share: each reads what it has of them."""

from __future__ import annotations

from typing import Any

import torch

from holdfast.formats.base import StoredTensor
from holdfast.formats.rectangles import boxed
from holdfast.objects.optimizer import OptimizerPart
from holdfast.serialization.sharded import is_sharded, local_part
from holdfast.state.flatten import map_leaves
from holdfast.transfer.plan import ObjectPlan


def localise(plan: ObjectPlan) -> None:
    """Narrows what is read for a sharded tensor to the box that this process has; changes nothing else."""
    targets: dict[str, Any] = plan.part.targets() if plan.reads else {}
    parameters = plan.part.parameters() if isinstance(plan.part, OptimizerPart) and plan.reads else []
    changed: dict[int, StoredTensor] = {}
    for name, leaf in plan.reads.items():
        live = targets[name] if name in targets else _parameter(name, leaf, parameters)
        if is_sharded(live):
            plan.sharded[name] = live
            changed[id(leaf)] = boxed(leaf, local_part(live, f"{plan.name}.{name}")[1])
    if changed:
        plan.reads = {name: changed.get(id(leaf), leaf) for name, leaf in plan.reads.items()}
        plan.assign = None if plan.assign is None else map_leaves(plan.assign, lambda one: changed.get(id(one), one))


def _parameter(name: str, leaf: StoredTensor, parameters: list[torch.Tensor]) -> Any:
    """The parameter whose new state ``state.0.exp_avg`` is, when that has its shape."""
    words = name.split(".")
    index = int(words[1]) if len(words) == 3 and words[1].isdecimal() else len(parameters)
    fits = index < len(parameters) and tuple(parameters[index].shape) == leaf.spec.shape
    return parameters[index] if fits else None


def like(live: torch.Tensor, dtype: torch.dtype, *, exists: bool) -> Any:
    """The tensor that an object is given for one that is read later: its own, or a new one sharded as its parameter."""
    return live if exists and live.dtype == dtype else torch.empty_like(live, dtype=dtype, requires_grad=False)
