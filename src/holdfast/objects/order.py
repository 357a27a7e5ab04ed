"""What the order of a loader's items follows from: its samplers, the generators in them, and what they are set to."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from holdfast.objects.stateful import Stateful

_INSIDE = ("dataset", "sampler", "batch_sampler", "base_dataloader")
_SETTINGS = ("batch_size", "drop_last", "replacement", "shuffle", "seed", "epoch", "num_replicas", "rank")


def parts_of(loader: Any) -> list[Any]:
    """The loader, its samplers and datasets, and those in their attributes, each once, in a fixed order."""
    found = [loader]
    for owner in found:  # it grows while it is read
        for name, value in _attributes(owner).items():
            inside = value if name == "datasets" and isinstance(value, list) else [value]
            for one in inside:
                if (name in _INSIDE or isinstance(one, Sampler | Dataset)) and not any(one is other for other in found):
                    found.append(one)
    return found


def generators_of(parts: list[Any]) -> list[Any]:
    """The random generators in the attributes of ``parts``: torch's, numpy's, Python's, each once."""
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if (numpy := sys.modules.get("numpy")) is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    found = [value for part in parts for value in _attributes(part).values() if isinstance(value, kinds)]
    return list({id(one): one for one in found if not isinstance(one, random.SystemRandom)}.values())


def generator_state(generator: Any) -> Any:
    """The state of one of these generators, as plain values and tensors."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Puts a generator back. Raises TypeError, ValueError, RuntimeError or LookupError when the state is none."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def samplers_with_state(parts: list[Any]) -> list[Any]:
    """The samplers that have a state_dict, but for those that ``set_epoch`` sets: they count nothing themselves."""
    return [part for part in parts[1:] if not isinstance(part, Dataset) and _counts(part)]


def _counts(sampler: Any) -> bool:
    return isinstance(sampler, Stateful) and not hasattr(sampler, "set_epoch")


def settings_of(loader: Any) -> dict[str, Any]:
    """What an order also follows from, as plain values that a resume can compare."""
    if not isinstance(loader, DataLoader):
        return {"class": type(loader).__qualname__, **_length(loader)}
    if isinstance(loader.dataset, IterableDataset):
        workers = {"num_workers": loader.num_workers, "batch_size": loader.batch_size, "drop_last": loader.drop_last}
        return {"class": type(loader.dataset).__qualname__, **workers}
    outer = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    found: dict[str, Any] = {"class": type(loader.sampler).__qualname__}
    for owner in (loader.sampler, outer):
        kept = {name: value for name, value in _attributes(owner).items() if name in _SETTINGS}
        if _counts(owner):
            kept.pop("epoch", None)  # it is in its state
        found.update({name: value for name, value in kept.items() if isinstance(value, int | str | None)})
    return {**found, **_length(loader.sampler), **_length(outer, "batches")}


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What was set otherwise when the place was saved, as text."""
    names = list({**saved, **here})
    return [f"{name} was {saved.get(name)}, is {here.get(name)}" for name in names if saved.get(name) != here.get(name)]


def _length(sized: Any, name: str = "length") -> dict[str, int]:
    try:
        return {name: len(sized)} if isinstance(sized, Sized) else {}
    except (TypeError, NotImplementedError):  # a length that its class only promises
        return {}


def _attributes(owner: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(owner, "__dict__", {})
    return found
