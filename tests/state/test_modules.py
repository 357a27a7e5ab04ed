"""Modules recognised in inert trees as every torch since 0.1 pickled them."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import MissingPart
from holdfast.formats.base import Segment, StoredTensor
from holdfast.spec import TensorSpec
from holdfast.state.modules import find_modules, lost_of, module_of, modules_at, state_of, with_states
from holdfast.state.values import Opaque, Typed
from holdfast.storage.source import MemorySource


def leaf(*shape: int) -> StoredTensor:
    return StoredTensor(TensorSpec("float32", shape), Segment(MemorySource(b""), 0, 0))


def parameter(data: Any) -> Typed:
    return Typed("parameter", {"data": data, "requires_grad": True})


def module(name: str = "my.Net", *, children: Any = None, **tables: Any) -> Opaque:
    return Opaque(name, [], {"_parameters": {}, "_buffers": {}, "_modules": children or {}, "training": True, **tables})


def test_the_order_is_that_of_torch() -> None:
    inner = module(_parameters={"w": parameter(leaf(1))}, _buffers={"b": leaf(2)})
    outer = module(
        children={"one": inner, "none": None}, _parameters={"p": parameter(leaf(3)), "q": None}, _buffers={"c": leaf(4)}
    )
    assert [(name, tensor.spec.shape) for name, tensor in state_of(module_of(outer)).items()] == [
        ("p", (3,)), ("c", (4,)), ("one.w", (1,)), ("one.b", (2,)),
    ]  # fmt: skip


def test_buffers_that_are_not_persistent_are_left_out() -> None:
    tree = module(_buffers={"a": leaf(1), "b": leaf(2)}, _non_persistent_buffers_set=Typed("set", ["a"]))
    assert list(state_of(module_of(tree))) == ["b"]


def test_tied_weights_stay_one_leaf() -> None:
    shared = parameter(leaf(1))
    tree = module(children={"a": module(_parameters={"w": shared}), "b": module(_parameters={"w": shared})})
    state = state_of(module_of(tree))
    assert state["a.w"] is state["b.w"] is shared.payload["data"]


@pytest.mark.parametrize(
    "old",
    [
        parameter(leaf(2)),
        Opaque("torch.nn.parameter.Parameter", [leaf(2)], Typed("tuple", [True, False, None])),
        Opaque("torch.autograd.variable.Variable", [leaf(2)]),
        leaf(2),
    ],
)
def test_parameters_of_every_age(old: Any) -> None:
    tree = module(_parameters=Typed("ordered_dict", [["w", old]]), _modules=Typed("ordered_dict", []))
    assert state_of(module_of(tree))["w"].spec.shape == (2,)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: module("torch.nn.parallel.data_parallel.DataParallel", children={"module": inner}),
        lambda inner: module("torch.nn.parallel.distributed.DistributedDataParallel", children={"module": inner}),
        lambda inner: module("some.Compiled", children={"_orig_mod": inner}),
        lambda inner: Opaque("torch._dynamo.eval_frame.OptimizedModule", [inner, None], {}),
        lambda inner: Opaque("torch.fx.graph_module.reduce_graph_module", [inner.state, "code"]),
    ],
    ids=["DataParallel", "DistributedDataParallel", "compiled", "OptimizedModule", "GraphModule"],
)
def test_wrappers(wrap: Any) -> None:
    inner = module(_parameters={"w": parameter(leaf(1))})
    assert list(state_of(module_of(wrap(inner)))) == ["w"]
    assert list(state_of(module_of(module(children={"a": wrap(inner)})))) == ["a.w"]


@pytest.mark.parametrize(
    "tree",
    [
        None, [], {"_parameters": {}}, leaf(1), Opaque("my.Net", [], {"_parameters": {}, "_buffers": {}}),
        Opaque("my.Net", [], {"_parameters": [], "_buffers": {}, "_modules": {}}),
        module(_parameters=Typed("dict", [[1, None]])), module(_buffers=Typed("ordered_dict", [["a"]])),
    ],
)  # fmt: skip
def test_what_is_no_module(tree: Any) -> None:
    assert module_of(tree) is None
    assert find_modules(tree) == {}


def test_what_is_lost_is_named() -> None:
    packed = Opaque("torch.ScriptObject", [], None)
    tree = module(
        children={"odd": Opaque("my.Part", []), "fine": module(), "quantized": module(_packed_params=packed)},
        _parameters={"lazy": Opaque("torch.nn.parameter.UninitializedParameter", [])},
        _buffers={"text": "x"},
        harmless=Opaque("my.Value", []),
    )
    assert lost_of(module_of(tree)) == [
        ("lazy", "a torch.nn.parameter.UninitializedParameter"),
        ("text", "a str"),
        ("odd", "a my.Part"),
        ("quantized._packed_params", "packed parameters of a quantized layer"),
    ]
    assert with_states({"m": tree}) == ({"m": tree}, [])


def test_modules_anywhere_in_a_tree() -> None:
    net = module(_parameters={"w": parameter(leaf(1))})
    tree = {"a": [net, 1], "b": Opaque("my.Trainer", [], {"model": net}), "c": Typed("ordered_dict", [["d", net]])}
    assert [*find_modules(tree)] == [("a", 0), ("b", "state", "model"), ("c", "d")]
    states, paths = with_states(tree)
    assert paths == ["a.0", "b.state.model", "c.d"]
    assert list(states["a"][0]) == ["w"]
    assert list(states["c"].payload[0][1]) == ["w"]


def test_names_are_escaped() -> None:
    with pytest.raises(MissingPart) as caught:
        modules_at({"evil\x1b[2J": module()}, "a\nb", "f\x07.pt")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x07" not in str(caught.value)
