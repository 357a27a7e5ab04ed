from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.errors import ArgumentError
from holdfast.objects.capture import adapt, adapt_all, is_object
from holdfast.objects.module import ModulePart, aliases, parameter_names, unwrap

# what torch.compile imports on its first use
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def test_unwrap_sees_through_any_nesting() -> None:
    net = nn.Linear(2, 2)
    assert unwrap(net) is net
    assert unwrap(nn.DataParallel(torch.compile(nn.DataParallel(net)))) is net  # type: ignore[arg-type]


def test_a_child_called_module_is_no_wrapper() -> None:
    outer = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert unwrap(outer) is outer


def test_aliases_name_the_first() -> None:
    base = torch.arange(6.0)
    targets = {"a": base, "part": base[:3], "b": base, "bits": base.view(torch.int32), "empty": base[:0], "c": base}
    assert aliases(targets) == {"b": "a", "c": "a"}


def test_parameter_names_carry_their_model_among_several() -> None:
    one, two = nn.Linear(1, 1), nn.DataParallel(nn.Linear(1, 1))
    assert list(parameter_names({"G": one}).values()) == ["weight", "bias"]
    assert list(parameter_names({"G": one, "D": two}).values()) == ["G.weight", "G.bias", "D.weight", "D.bias"]


class Renames(nn.Linear):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[no-untyped-call]


def hooked(name: str) -> nn.Module:
    module = nn.Linear(1, 1)
    getattr(module, name)(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "own"),
    [
        (nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.LSTM(1, 1)), False),
        (nn.Sequential(Renames(1, 1)), True),
        (hooked("register_load_state_dict_pre_hook"), True),
        (hooked("register_load_state_dict_post_hook"), True),
        (hooked("_register_state_dict_hook"), True),
        (hooked("register_state_dict_pre_hook"), True),
        (hooked("register_forward_hook"), False),
    ],
    ids=["plain", "override", "pre", "post", "state", "state_pre", "forward"],
)
def test_which_modules_load_themselves(module: nn.Module, own: bool) -> None:
    assert ModulePart(module).has_own_loader() is own


def test_what_is_an_object() -> None:
    assert is_object(nn.Linear(1, 1))
    assert is_object(torch.Generator())
    assert not is_object(nn.Linear)
    assert not is_object({"state_dict": 1})
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    parts = adapt_all({"m": net, "o": optimizer, "s": torch.optim.lr_scheduler.StepLR(optimizer, 1), "none": None})
    assert {name: part.kind for name, part in parts.items()} == {"m": "module", "o": "optimizer", "s": "scheduler"}
    with pytest.raises(ArgumentError, match=r"`x` is a int, which has no state_dict\(\) and load_state_dict\(\)"):
        adapt(5, "x", {})
