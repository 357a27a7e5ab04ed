"""build: constructing a model from what the caller allows; configs, source, probes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import holdfast
from holdfast.errors import ArgumentError, ConfigMissing, CorruptFile, MismatchError, MissingPart


@holdfast.record_config
class Recorded(nn.Module):
    def __init__(self, width: int, *, depth: int = 1, **extra: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth + extra.get("more", 0)))


class WithConfig(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(config["width"] if isinstance(config, dict) else config.width, 2)


class Needy(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"y": self.drop(self.norm(self.fc(x))) * scale}


@dataclasses.dataclass
class Settings:
    width: int


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(params=["net.pt", "net.safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_recorded_arguments_build_it_again(file: Path) -> None:
    net = Recorded(3, depth=2, more=1)
    holdfast.save({"model": net, "epoch": 1}, file)
    assert same(holdfast.build(file, factory=Recorded), net)


def test_a_config_as_keywords_as_one_dict_and_as_an_attribute(file: Path) -> None:
    def create(config: dict[str, int]) -> nn.Module:
        return Needy(config["width"])

    net = Needy(5)
    holdfast.save(net, file, config={"width": 5})
    assert same(holdfast.build(file, factory=Needy), net)
    assert same(holdfast.build(file, factory=create), net)
    other = WithConfig({"width": 6})
    holdfast.save(other, file)
    assert same(holdfast.build(file, factory=WithConfig), other)


def test_a_dataclass_config_comes_as_a_record(file: Path) -> None:
    net = WithConfig(Settings(7))
    holdfast.save(net, file)
    assert same(holdfast.build(file, factory=WithConfig), net)


def test_a_trusted_name_is_the_factory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_models")
    module.Needy = type("Needy", (Needy,), {"__module__": "their_models", "__qualname__": "Needy"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_models", module)
    net = module.Needy(4)
    holdfast.save(net, file, config={"width": 4})
    made = holdfast.build(file, trusted={"their_models.Needy"})
    assert type(made) is module.Needy
    assert same(made, net)
    with pytest.raises(ArgumentError, match=r"the file says it is a their_models\.Needy"):
        holdfast.build(file, trusted={"another.Name"})


def test_a_missing_config_says_the_line_to_add(file: Path) -> None:
    holdfast.save(Needy(4), file)
    with pytest.raises(
        ConfigMissing, match=r"Needy\(width: 'int'\).* needs arguments and the file records none: save it"
    ):
        holdfast.build(file, factory=Needy)


def test_a_config_that_does_not_fit_is_refused(file: Path) -> None:
    holdfast.save(Needy(4), file, config={"size": 4, "more": 2})
    with pytest.raises(ArgumentError, match="takes neither the keywords of the recorded config"):
        holdfast.build(file, factory=lambda: Needy(4))


def test_a_factory_of_something_else_is_refused(file: Path) -> None:
    holdfast.save(Needy(4), file)
    with pytest.raises(ArgumentError, match="returned a dict, a torch module is wanted"):
        holdfast.build(file, factory=dict)


def test_weights_that_do_not_fit_what_was_made(file: Path) -> None:
    holdfast.save(Needy(4), file)
    with pytest.raises(MismatchError, match=r"file has \(2, 4\) float32, object wants \(2, 5\) float32"):
        holdfast.build(file, factory=lambda: Needy(5))


def test_a_config_with_a_tensor_is_left_out_and_said(file: Path) -> None:
    net = WithConfig({"width": 2, "table": torch.ones(2)})
    saved = holdfast.save(net, file)
    assert any("holds a tensor" in note for note in saved.notes)
    with pytest.raises(holdfast.HoldfastError, match="a config is plain data; this one holds a tensor"):
        holdfast.save(net, file, config={"table": torch.ones(2)})


def test_config_and_probe_belong_to_one_model(file: Path) -> None:
    both = {"G": Needy(2), "D": Needy(3)}
    holdfast.save(both, file)
    for net in both.values():
        net.config = {"width": 2}  # type: ignore[assignment]
    holdfast.save(both, file)
    with pytest.raises(MissingPart, match=r"records 2 models; build one with its factory and restore\(at=\)"):
        holdfast.build(file, factory=Needy)
    with pytest.raises(ArgumentError, match="config= belongs to one module, 2 are saved"):
        holdfast.save(both, file, config={"width": 2})
    with pytest.raises(ArgumentError, match="probe= belongs to one module, 2 are saved"):
        holdfast.save(both, file, probe=torch.ones(1, 2))


def notes(file: Path, net: nn.Module, **options: Any) -> str:
    return "\n".join(holdfast.restore(file, model=net, **options).notes)


def test_a_probe_says_same_answers(file: Path) -> None:
    net = Dropping()
    net(torch.randn(8, 4))  # running statistics that are not the default
    before = torch.get_rng_state()
    holdfast.save({"model": net}, file, probe=(torch.randn(2, 4), 2.0))
    assert net.training
    fresh = Dropping()
    assert "same answers to the probe as when it was saved" in notes(file, fresh)
    assert fresh.training
    assert fresh.drop.training
    torch.set_rng_state(before)


def test_a_probe_notices_edited_code(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Dropping()
    holdfast.save(net, file, probe=torch.randn(2, 4))
    monkeypatch.setattr(Dropping, "forward", lambda self, x, scale=1.0: {"y": self.norm(self.fc(x)) + 0.5})
    assert "OTHER answers to the probe than when it was saved: up to 0.5 off" in notes(file, Dropping())
    monkeypatch.setattr(Dropping, "forward", lambda self, x, scale=1.0: {"y": self.fc(x)[:1]})
    assert "of another shape" in notes(file, Dropping())
    monkeypatch.setattr(Dropping, "forward", lambda self, x, scale=1.0: self.gone(x))
    assert "the probe can't be replayed: AttributeError" in notes(file, Dropping())


def test_a_probe_too_large_or_not_taken_is_refused(file: Path) -> None:
    with pytest.raises(ArgumentError, match="give a small example, at most 1,048,576"):
        holdfast.save(Dropping(), file, probe=torch.zeros(300_000, 4))
    with pytest.raises(ArgumentError, match="probe=: the model does not take it: RuntimeError"):
        holdfast.save(Dropping(), file, probe=torch.zeros(2, 5))


def test_changed_source_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.objects import builder

    holdfast.save(Needy(4), file)
    assert "source" not in notes(file, Needy(4))
    monkeypatch.setattr(builder, "source_digest", lambda cls: "0" * 64)
    assert "the source of" in notes(file, Needy(4))


def test_args_are_not_taken_for_a_config(file: Path) -> None:
    holdfast.save({"model": Needy(2), "args": argparse.Namespace(width=2)}, file)
    with pytest.raises(ConfigMissing):
        holdfast.build(file, factory=Needy)


@pytest.mark.parametrize(
    "probe",
    [
        None,
        [],
        {},
        {"inputs": 3, "digest": "", "summary": []},
        {"inputs": [{"dtype": "load", "shape": [1], "data": b"1234"}], "digest": "", "summary": []},
        {"inputs": [{"dtype": "float32", "shape": [10**14], "data": b""}], "digest": "", "summary": []},
        {"inputs": [{"dtype": "float32", "shape": [2, 4], "data": b"12345"}], "digest": "", "summary": []},
        {"inputs": [], "outputs": [{"dtype": "float32"}], "digest": "", "summary": []},
    ],
)
def test_a_damaged_probe_is_said_and_no_more(probe: Any) -> None:
    from holdfast.objects.probe import probe_inputs, replay

    if not isinstance(probe, dict) or "outputs" not in probe:
        with pytest.raises(CorruptFile, match=r"`f.pt`: its probe is damaged: "):
            probe_inputs(probe, "f.pt")
    assert replay(Dropping(), probe).startswith("the probe in the file is damaged and was not replayed: ")
