"""Source for a class that is gone: it runs, it takes the weights, and nothing of a file becomes code in it."""

from __future__ import annotations

import ast
import io
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.formats.torchzip import open as open_zip
from holdfast.state.layers import CONSTRUCTORS, CONTAINERS
from holdfast.state.modules import modules_at
from holdfast.state.skeleton import skeleton
from holdfast.state.values import Opaque, Typed
from holdfast.storage.source import MemorySource
from tests.state.test_layers import MADE
from tests.state.test_modules import leaf, module, parameter
from tests.transfer.gone import throwaway

pytestmark = pytest.mark.filterwarnings("ignore:`torch")


def spec(leaf: Any) -> Any:
    return getattr(leaf, "spec", None)


def source_of(net: Any) -> tuple[str, dict[str, Any]]:
    """The skeleton of a live object that is saved whole, and the rescued state."""
    buffer = io.BytesIO()
    torch.save(net, buffer)
    with open_zip(MemorySource(buffer.getvalue()), "net.pt") as container:
        modules = modules_at(container.document().tree, None, "net.pt")
    named = {"" if len(modules) == 1 else name: one for name, one in modules.items()}
    buffer.seek(0)
    return skeleton(named, spec), holdfast.rescue(buffer)


def run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, "skeleton", "exec"), names)
    return names


def test_a_class_that_is_gone() -> None:
    with throwaway() as models:
        net = models.Net()
        source, state = source_of(net)
    made = run(source)["model"]
    made.load_state_dict(state, strict=True)
    assert list(made.state_dict()) == list(state)
    assert all(torch.equal(one, state[name]) for name, one in made.state_dict().items())
    assert made.out.weight is made.embed.weight
    assert (made.name, made.sizes, made.absent, made.missing) == ("it's", (1, [2.5, None]), None, None)
    assert made.blocks[0].scale == float("inf")
    assert "transient" not in made.state_dict()
    assert type(made.transient) is torch.Tensor
    assert type(made.blocks[0]) is type(made.blocks[1]) is not type(made.blocks[2])
    assert repr(made.heads) == repr(net.heads)
    with pytest.raises(NotImplementedError):
        made(torch.ones(1))


def test_what_is_left_out_is_said() -> None:
    with throwaway() as models:
        source, _ = source_of(models.Net())
    assert "# had hooks, which are code and stay behind: _forward_pre_hooks" in source
    assert "# had 'act': " in source
    assert "class Block2(nn.Module):  # throwaway_models.Block" in source


@pytest.mark.parametrize("net", MADE, ids=range(len(MADE)))
def test_layers_of_torch_are_one_expression(net: nn.Module) -> None:
    source, state = source_of(net)
    assert "class " not in source
    made = run(source)["model"]
    assert repr(made) == repr(net)
    made.load_state_dict(state, strict=True)


def test_names_in_a_sequential_and_several_modules() -> None:
    net = nn.Sequential()
    net.add_module("first layer", nn.Linear(1, 2))
    source, _ = source_of({"G": net, "D": nn.Tanh()})
    names = run(source)
    assert repr(names["G"]) == repr(net)
    assert repr(names["D"]) == "Tanh()"


EVIL = "x\n    import os; os.system('id')\n#\u202e"


@pytest.mark.parametrize(
    "tree",
    [
        module(EVIL), module("a.b." + EVIL), module("my.class"), module("my.nn"), module("my.1x"), module(""),
        module(children={EVIL: module(), "a.b": module(), "": module(), "class": module(), "__class__": module()}),
        module(_parameters={EVIL: parameter(leaf(1)), "": parameter(leaf(2)), "a": parameter(Opaque(EVIL, []))}),
        module(_buffers={EVIL: leaf(1), "a.b": leaf(2), "x": EVIL}),
        module(**{EVIL: 1, "__class__": "str", "class": 1, "ok": EVIL, "odd": Opaque(EVIL, []), "long": "x" * 10_000}),
        module(numbers=[float("nan"), -float("inf"), 1j, b"\x00"], deep=[[[[1]]]], text="'\"\\"),
        module("torch.nn.modules.linear.Linear", in_features=Typed("tuple", [EVIL]), out_features=EVIL),
        module("torch.nn.modules.container.Sequential", children={EVIL: module(), "ok": module(EVIL)}),
        module("torch.nn.modules.container.ModuleDict", children={"a'b": module("torch.nn.modules.activation.Tanh")}),
        module("torch.nn.modules.activation.ReLU\nimport os", inplace=EVIL),
        module(children={"part": Opaque(EVIL, [])}),
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_names_stay_names(tree: Any) -> None:
    source = skeleton(modules_at({"net": tree}, None, "f"), spec)
    assert source.isascii()
    parsed = ast.parse(source)
    imported = [node for node in ast.walk(parsed) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = sorted(alias.name for node in imported for alias in node.names)
    assert names in (["nn", "torch"], ["OrderedDict", "nn", "torch"])
    called = {ast.unparse(node.func) for node in ast.walk(parsed) if isinstance(node, ast.Call)}
    defined = {node.name for node in ast.walk(parsed) if isinstance(node, ast.ClassDef)}
    known = {"super", "super().__init__", "torch.empty", "OrderedDict", "float"} | defined
    known |= {f"self.{name}" for name in ("register_parameter", "register_buffer", "add_module", "get_submodule")}
    assert {name for name in called - known if not name.startswith("nn.")} == set()
    assert {name[3:] for name in called if name.startswith("nn.")} <= {*CONSTRUCTORS, *CONTAINERS, "Parameter"}
    assert "\n    import os" not in source
    assert len(source) < 10_000


def test_hostile_variable_names() -> None:
    source = skeleton(modules_at({EVIL: module(), "lambda": module()}, None, "f"), spec)
    ast.parse(source)
    assert "\nimport os" not in source
