"""trusted=: classes of a file that plain torch.save wrote come back when the caller names them, and only then."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.errors import CorruptFile, UntrustedType

SOURCE = """
import dataclasses, enum

@dataclasses.dataclass
class Config:
    width: int
    layers: list

@dataclasses.dataclass(frozen=True)
class Frozen:
    width: int

class Mode(enum.Enum):
    FAST = 1
    EXACT = "x"

class Slotted:
    __slots__ = ("a", "b")
    def __init__(self, a, b):
        self.a, self.b = a, b

class Setting:
    def __init__(self, value):
        self.value = value
    def __getstate__(self):
        return {"kept": self.value}
    def __setstate__(self, state):
        self.value = state["kept"]

class Made:
    def __init__(self, value):
        self.value = value
    def __reduce__(self):
        return Made, (self.value,)
"""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("their_code")
    monkeypatch.setitem(sys.modules, "their_code", module)
    exec(SOURCE, module.__dict__)
    return module


def saved(path: Path, value: Any) -> Path:
    torch.save({"value": value, "w": torch.ones(2)}, path)
    return path


def test_named_classes_are_rebuilt(theirs: Any, tmp_path: Path) -> None:
    values = {
        "Config": theirs.Config(3, [1, theirs.Config(4, [])]),
        "Frozen": theirs.Frozen(5),
        "Mode": [theirs.Mode.FAST, theirs.Mode.EXACT],
    }
    for name, value in values.items():
        file = saved(tmp_path / f"{name}.pt", value)
        assert holdfast.load(file, trusted={f"their_code.{name}"})["value"] == value


def test_slots_setstate_and_reduce(theirs: Any, tmp_path: Path) -> None:
    file = saved(tmp_path / "f.pt", [theirs.Slotted(1, 2), theirs.Setting(3), theirs.Made(4), theirs.Config])
    names = {f"their_code.{name}" for name in ("Slotted", "Setting", "Made", "Config")}
    slotted, setting, made, cls = holdfast.load(file, trusted=names)["value"]
    assert (slotted.a, slotted.b, setting.value, made.value) == (1, 2, 3, 4)
    assert cls is theirs.Config


def test_others_are_refused_with_the_name_to_trust(theirs: Any, tmp_path: Path) -> None:
    file = saved(tmp_path / "f.pt", [theirs.Frozen(1), theirs.Config(2, [])])
    with pytest.raises(UntrustedType, match=r"not rebuilt from a file: their_code\.Config\. Ways on: .*trusted="):
        holdfast.load(file, trusted={"their_code.Frozen"})
    loaded = holdfast.load(file, opaque=True, trusted={"their_code.Frozen"})["value"]
    assert loaded[0] == theirs.Frozen(1)
    assert isinstance(loaded[1], holdfast.Opaque)
    assert loaded[1].type_name == "their_code.Config"


def test_a_class_that_changed_is_said(theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "f.pt", theirs.Made(4))
    monkeypatch.setattr(theirs, "Made", type("Made", (), {}))
    with pytest.raises(CorruptFile, match=r"their_code\.Made does not take what the file has for it: TypeError"):
        holdfast.load(file, trusted={"their_code.Made"})


def test_a_function_is_never_called_by_trust(theirs: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return theirs.strike, ("now",)

    theirs.strike = types.FunctionType((lambda word: None).__code__, {}, "strike")
    theirs.strike.__module__, theirs.strike.__qualname__ = "their_code", "strike"
    file = saved(tmp_path / "f.pt", Evil())
    with pytest.raises(UntrustedType, match=r"trusted name 'their_code\.strike' is no class"):
        holdfast.load(file, trusted={"their_code.strike"})


def test_our_own_records_follow_trust_too(theirs: Any, tmp_path: Path) -> None:
    for name in ("f.pt", "f.safetensors"):
        holdfast.save({"c": theirs.Config(3, [1]), "m": theirs.Mode.FAST}, tmp_path / name)
        plain = holdfast.load(tmp_path / name)
        assert isinstance(plain["c"], holdfast.Record)
        assert plain["c"].width == 3
        full = holdfast.load(tmp_path / name, trusted={"their_code.Config", "their_code.Mode"})
        assert full == {"c": theirs.Config(3, [1]), "m": theirs.Mode.FAST}
        assert dataclasses.is_dataclass(full["c"])
        assert isinstance(full["m"], enum.Enum)
