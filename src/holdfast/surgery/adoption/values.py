"""Epoch, step and metrics in the tree of an old checkpoint, at its top or nested; nothing of a file is run."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator
from typing import Any, Literal

import msgspec

from holdfast.formats.base import StoredTensor
from holdfast.formats.packing import tensor_bytes
from holdfast.runs.layout import MAX_STEP
from holdfast.spec import DTYPES
from holdfast.state.flatten import child, keys
from holdfast.state.foreign import scalar_text
from holdfast.state.values import Tree, Typed
from holdfast.surgery.adoption.names import is_metric

EpochIs = Literal["done", "next"]
Number = int | float
_EPOCHS: dict[str, EpochIs | None] = {
    **dict.fromkeys(("epoch", "current_epoch", "cur_epoch", "epoch_idx", "epoch_num", "epoch_id", "n_epoch"), None),
    "last_epoch": "done",
    **dict.fromkeys(("start_epoch", "next_epoch", "epochs_done", "epochs_completed", "completed_epochs"), "next"),
}
_STEPS = {
    **dict.fromkeys(("global_step", "global_steps", "global_iter", "global_iteration", "num_updates"), True),
    **dict.fromkeys(("step", "steps", "iteration", "iterations", "iter", "iters", "n_iter", "cur_iter", "it"), False),
}
"""Keys of a step, and whether it is counted over the whole training by its name."""
_SETTING_NAMES = """
args arguments callbacks cfg conf config configs datamodule_hyper_parameters flags hparams hyper_parameters
hyperparameters loader loops opt options opts parameters params rng settings
"""
_SETTINGS = frozenset(_SETTING_NAMES.split())
"""Parts whose numbers were chosen, not counted or measured."""
_MEASURE_NAMES = "info log logs measures metric metrics performance result results score scores state stats"
_MEASURES = frozenset(_MEASURE_NAMES.split())
"""Parts that say no more than that there are metrics in them: their name does not become part of a metric's."""
_DEPTH = 3
_CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}
"""struct's code by that of safetensors."""


class Said(msgspec.Struct, frozen=True):
    """A number that a file says.

    Attributes:
        value: of at least 0.
        key: its dotted path.
        means: for an epoch, which one the key's name says; None when it leaves that open.
        overall: for a step, whether it counts from the beginning of the training by its name.
    """

    value: int
    key: str
    means: EpochIs | None = None
    overall: bool = False


class Values(msgspec.Struct, frozen=True):
    """What the values of a checkpoint say.

    Attributes:
        epoch: the epoch, as it stands there.
        step: likewise.
        metrics: by name.
    """

    epoch: Said | None = None
    step: Said | None = None
    metrics: dict[str, float] = {}


class Loops(msgspec.Struct, frozen=True):
    """Where Lightning's loops stood: certain, where tutorials leave it open.

    Attributes:
        epochs: epochs that are done.
        batch: batches of the next one that are done.
        step: batches since the training began; None when the file does not say.
    """

    epochs: int
    batch: int
    step: int | None


def find_values(tree: Tree, parts: Collection[str]) -> Values:
    """Looks through the values of a tree, nearest to the top first.

    Args:
        tree: a checkpoint's.
        parts: top keys that are objects' states: not looked into.
    """
    epoch: Said | None = None
    step: Said | None = None
    metrics: dict[str, float] = {}
    for path, number in _numbers(tree, parts):
        key, name = path[-1].lower().replace("-", "_"), ".".join(path)
        count = _count(number)
        if key in _EPOCHS:
            if epoch is None and count is not None:
                epoch = Said(count, name, means=_EPOCHS[key])
        elif key in _STEPS:
            if count is not None and (step is None or (_STEPS[key] and not step.overall)):
                step = Said(count, name, overall=_STEPS[key])
        elif is_metric(path[-1]) or (len(path) > 1 and path[-2].lower() in _MEASURES and is_metric(path[-2])):
            metrics.setdefault(_metric(path), float(number))
    return Values(epoch, step, metrics)


def _metric(path: tuple[str, ...]) -> str:
    return "_".join((*(part for part in path[:-1] if part.lower() not in _MEASURES), path[-1]))


def _count(number: Number) -> int | None:
    """A number as a count, where it can be one."""
    if isinstance(number, float) and not number.is_integer():  # which NaN and the infinities are not either
        return None
    return int(number) if 0 <= number < MAX_STEP else None


def _numbers(tree: Tree, parts: Collection[str]) -> Iterator[tuple[tuple[str, ...], Number]]:
    """Every number with its path, breadth first."""
    level: list[tuple[tuple[str, ...], Tree]] = [((), tree)]
    for _ in range(_DEPTH):
        below: list[tuple[tuple[str, ...], Tree]] = []
        for path, node in level:
            for key in keys(node):
                if type(key) is not str or key.lower() in _SETTINGS or (not path and key in parts):
                    continue
                item = child(node, key)
                number = number_of(item)
                if number is not None:
                    yield (*path, key), number
                elif keys(item):
                    below.append(((*path, key), item))
        level = below


def number_of(tree: Tree) -> Number | None:
    """The number that a value is: Python's own, numpy's, or a tensor of one element; None for anything else."""
    if type(tree) is float:
        return tree
    if type(tree) is int:
        return tree if abs(tree) <= MAX_STEP else None  # a pickle's integers are as long as it likes
    if isinstance(tree, StoredTensor):
        return _of_tensor(tree)
    if type(tree) is not Typed or type(tree.payload) is not dict:
        return None
    if tree.kind == "parameter":
        return number_of(tree.payload.get("data"))
    if tree.kind == "numpy.array" and "tensor" in tree.payload:
        return number_of(tree.payload["tensor"])
    text = scalar_text(tree.payload) if tree.kind in ("numpy.scalar", "numpy.array") else None
    return None if text is None or text in ("True", "False") else _parsed(text)


def _parsed(text: str) -> Number:
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def _of_tensor(leaf: StoredTensor) -> Number | None:
    if leaf.spec.numel != 1:
        return None
    code = DTYPES[leaf.spec.dtype].safetensors
    flat = msgspec.structs.replace(leaf, spec=msgspec.structs.replace(leaf.spec, shape=(1,), stride=None))
    data = tensor_bytes(flat).read(0, leaf.spec.itemsize)
    if code == "BF16":
        code, data = "F32", b"\0\0" + data
    if code not in _CODES or code == "BOOL":
        return None
    number: Number = struct.unpack(f"<{_CODES[code]}", data)[0]
    return number


# -- what the objects' states count


def optimizer_steps(state: Tree) -> int | None:
    """The steps that an optimizer counted itself (Adam's ``step``): the most of any parameter."""
    moments = child(state, "state")
    found = [_number_at(child(moments, key), "step") for key in keys(moments)]
    counts = [count for number in found if number is not None and (count := _count(number)) is not None]
    return max(counts, default=None)


def is_trained(state: Tree) -> bool:
    """Whether an optimizer holds state of any parameter."""
    return bool(keys(child(state, "state")))


def scheduler_epoch(state: Tree) -> int | None:
    """How often a scheduler was stepped."""
    number = _number_at(state, "last_epoch")
    return None if number is None else _count(number)


def loops_of(tree: Tree) -> Loops | None:
    """Where the loops of Lightning stood, in a file that it wrote."""
    fit = child(child(tree, "loops"), "fit_loop")
    epoch = _whole(tree, "epoch")
    processed = _whole(child(child(fit, "epoch_progress"), "current"), "processed")
    progress = child(fit, "epoch_loop.batch_progress")
    if epoch is None or processed is None:
        return None
    step = _whole(child(progress, "total"), "processed")
    if processed > epoch or child(progress, "is_last_batch") is True:
        return Loops(epoch + 1, 0, step)
    return Loops(epoch, _whole(child(progress, "current"), "processed") or 0, step)


def monitored(tree: Tree) -> tuple[dict[str, float], str | None]:
    """What Lightning's ModelCheckpoint watches, its value in this file, and the name of the best file so far."""
    metrics: dict[str, float] = {}
    best: str | None = None
    callbacks = child(tree, "callbacks")
    for key in keys(callbacks):
        callback: Any = child(callbacks, key)
        name, path = child(callback, "monitor"), child(callback, "best_model_path")
        value = _number_at(callback, "current_score")
        if type(name) is str and value is not None:
            metrics[name] = float(value)
        if type(path) is str and path:
            best = re.split(r"[/\\]", path)[-1]
    return metrics, best


def _number_at(tree: Tree, key: str) -> Number | None:
    return number_of(child(tree, key))


def _whole(tree: Tree, key: str) -> int | None:
    number = _number_at(tree, key)
    return None if number is None else _count(number)
