"""Every real file that older torch versions wrote: equal to what torch reads, or refused where torch refuses it.

Counts are printed. The files are not part of the project; without them the test is skipped and says where it looked.
"""

from __future__ import annotations

import collections
import pathlib
import pickle
import warnings
from typing import Any

import pytest
import torch

from holdfast import compat
from holdfast.errors import HoldfastError
from holdfast.formats.detect import open_path
from holdfast.serialization.reading import read_tree
from holdfast.state.values import Opaque

pytestmark = pytest.mark.filterwarnings("ignore")

REFUSED = (RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ModuleNotFoundError, ValueError)
"""What torch raises for files that it can't read."""


def of_torch(path: pathlib.Path) -> Any:
    """What torch makes of a file, None when it refuses it."""
    for read in (lambda: torch.load(path, weights_only=False), lambda: torch.jit.load(path)):
        try:
            return read()
        except REFUSED:
            continue
    return None


def differ(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two loaded values are not the same; objects that stay inert are compared by what is in them."""
    if isinstance(theirs, torch.jit.ScriptModule):
        state = theirs.state_dict()
        names = [name for name in ours if name in state]
        found = [] if names == list(state) else [f"{path}: names {names} and {list(state)}"]
        return found + [line for name in names for line in differ(ours[name], state[name], f"{path}.{name}")]
    if isinstance(ours, Opaque):
        return differ_inert(ours, theirs, path)
    if isinstance(theirs, torch.storage.TypedStorage):
        same = ours.dtype == theirs.dtype and ours._untyped_storage.tolist() == theirs._untyped_storage.tolist()
        return [] if same else [f"{path}: storages differ"]
    if type(ours) is not type(theirs):
        return [f"{path}: {type(ours).__name__} and {type(theirs).__name__}"]
    if isinstance(theirs, torch.Tensor):
        return [] if same_tensor(ours, theirs) else [f"{path}: tensors differ"]
    if isinstance(theirs, dict):
        keys = [] if list(ours) == list(theirs) else [f"{path}: keys {list(ours)} and {list(theirs)}"]
        shared = [key for key in theirs if key in ours]
        return keys + [line for key in shared for line in differ(ours[key], theirs[key], f"{path}.{key}")]
    if isinstance(theirs, list | tuple):
        lengths = [] if len(ours) == len(theirs) else [f"{path}: {len(ours)} and {len(theirs)} items"]
        pairs = enumerate(zip(ours, theirs, strict=False))
        return lengths + [line for index, (a, b) in pairs for line in differ(a, b, f"{path}.{index}")]
    if isinstance(theirs, torch.ScriptObject):  # C++ objects without equality
        return differ(ours.__getstate__(), theirs.__getstate__(), path)
    return [] if ours == theirs else [f"{path}: {ours!r} and {theirs!r}"]


def differ_inert(ours: Opaque, theirs: Any, path: str) -> list[str]:
    name = f"{type(theirs).__module__}.{type(theirs).__qualname__}"
    if isinstance(theirs, torch.nn.Module):
        found = [] if ours.type_name == name else [f"{path}: class {ours.type_name} and {name}"]
        for part in ("_parameters", "_buffers"):
            found += differ(dict(ours.state[part]), dict(getattr(theirs, part)), f"{path}.{part}")
        return found
    return [] if isinstance(theirs, torch.ScriptObject) else [f"{path}: {ours.type_name} and {name}"]


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    facts = [(t.dtype, t.shape, t.layout, t.requires_grad, t.is_quantized) for t in (left, right)]
    if facts[0] != facts[1]:
        return False
    if left.is_quantized:
        if left.qscheme() != right.qscheme() or left.stride() != right.stride():
            return False
        return torch.equal(left.int_repr(), right.int_repr()) and torch.equal(left.dequantize(), right.dequantize())
    bits = [tensor.detach().contiguous().numpy().tobytes() for tensor in (left, right)]
    return left.stride() == right.stride() and bits[0] == bits[1]


def test_every_real_file(material: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    files = sorted(path for path in material.rglob("*.pt") if path.is_file())
    for path in files:
        theirs = of_torch(path)
        try:
            with open_path(path) as container:
                ours, kind = read_tree(container.document().tree, path.name, opaque=True), container.format
        except HoldfastError as refusal:
            problems += [] if theirs is None else [f"{path.name}: torch reads it; {refusal}"]
            problems += [] if path.name in str(refusal) else [f"{path.name} is not named: {refusal}"]
            counts["refused by both" if theirs is None else "refused by us alone"] += 1
            continue
        if theirs is None:
            counts[f"{kind}: read by us alone"] += 1
            continue
        found = differ(ours, theirs)
        problems += [f"{path.name}: {line}" for line in found]
        counts[f"{kind}: {'differs' if found else 'equal'}"] += 1
    with capsys.disabled():
        print(f"\n{len(files)} real files: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    assert not problems, "\n".join(problems)
    assert len(files) >= 50
    assert sum(count for what, count in counts.items() if what.endswith(": equal")) >= 48


def test_the_drop_in_on_every_real_file(material: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same results as torch.load, and refusals of the same type, with and without weights_only."""
    counts: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    for path in sorted(material.rglob("*.pt")):
        for weights_only in (True, False):
            outcomes: list[Any] = []
            for load in (compat.load, torch.load):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        outcomes.append(load(path, weights_only=weights_only))
                    except REFUSED as reason:
                        outcomes.append(reason)
            ours, theirs = outcomes
            if isinstance(theirs, Exception):
                same = type(ours) is type(theirs)
                counts["refused alike" if same else "refused otherwise"] += 1
                problems += [] if same else [f"{path.name}: {ours!r:.200} and {theirs!r:.200}"]
                continue
            if isinstance(theirs, torch.jit.ScriptModule | torch.nn.Module):
                ours, theirs = dict(ours.state_dict()), dict(theirs.state_dict())
            found = [str(ours)] if isinstance(ours, Exception) else differ(ours, theirs)
            counts["differ" if found else "equal"] += 1
            problems += [f"{path.name}: {line}" for line in found]
    with capsys.disabled():
        print(f"\ndrop-in on real files, twice each: {dict(counts)}")
    assert not problems, "\n".join(problems)
