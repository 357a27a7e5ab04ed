"""What it takes to be saved: ``state_dict`` and ``load_state_dict``, and one adapter for each kind of object."""

from __future__ import annotations

import copy
from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say what it holds and take it back: modules, optimizers, schedulers, scalers, loaders."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class StatefulPart:
    """One live object of a save or restore, seen through ``state_dict``. The base of the more knowing adapters.

    Attributes:
        kind: what the file records: ``module``, ``optimizer``, ``scheduler``, ``stateful``.
    """

    kind = "stateful"

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def capture(self) -> Any:
        """The object's state: live values, tensors not copied."""
        return self.obj.state_dict()

    def describe(self) -> dict[str, Any]:
        """What is recorded beside the state."""
        return {"kind": self.kind, "class": class_name(self.obj)}

    def targets(self) -> dict[str, torch.Tensor]:
        """Live tensors that bytes may be read straight into, by dotted name; their object must not be replaced."""
        return {}

    def assign(self, state: Any) -> None:
        """Gives the object its new state."""
        self.obj.load_state_dict(state)

    def spare(self) -> Any:
        """The present state, for ``roll_back``."""
        return copy.deepcopy(self.capture())

    def roll_back(self, spare: Any) -> None:
        """Undoes ``assign``."""
        self.assign(spare)


class GeneratorPart(StatefulPart):
    """A ``torch.Generator``."""

    kind = "generator"

    def capture(self) -> Any:
        return {"state": self.obj.get_state(), "device": str(self.obj.device)}

    def assign(self, state: Any) -> None:
        self.obj.set_state(state["state"])


def class_name(obj: Any) -> str:
    """The full name of an object's class, as ``trusted=`` takes it."""
    cls = own_class(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


def own_class(obj: Any) -> type:
    """The user's own class of an object; ``fully_shard`` puts one made of it and torch's in a module's place."""
    cls = type(obj)
    made = cls.__module__.startswith("torch.distributed.fsdp.") and len(cls.__bases__) == 2
    return cls.__bases__[1] if made else cls
