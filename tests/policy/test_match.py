"""The decision whether a file fits: names, shapes and dtypes in, pairs and a report out."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast import Exact, Warm
from holdfast.errors import ArgumentError, MismatchError
from holdfast.policy.dtype import is_lossless, judge_cast
from holdfast.policy.match import check, match
from holdfast.policy.names import align, policy_names, without_wrappers
from holdfast.policy.shape import may_resize
from holdfast.spec import DTYPES, TensorSpec

F32 = "float32"


def specs(**shapes: Any) -> dict[str, TensorSpec]:
    """``a__b=(2, 3)`` as a tensor a.b; a list gives shape and dtype."""
    found = {}
    for name, given in shapes.items():
        shape, dtype = given if isinstance(given, list) else (given, F32)
        found[name.replace("__", ".")] = TensorSpec(dtype, shape)
    return found


LIVE = specs(fc__weight=(3, 4), fc__bias=(3,))


def refused(stored: dict[str, TensorSpec], live: dict[str, TensorSpec], policy: Any) -> str:
    with pytest.raises(MismatchError) as caught:
        check(match(stored, live, policy).report, policy, "f.pt", "model")
    assert caught.value.report is not None
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.module.fc.weight", "fc.weight"),
        ("module._orig_mod.submodule.fc", "submodule.fc"),
        ("encoder._orig_mod.fc", "encoder.fc"),
        ("layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.fc", "layers.0.fc"),
        ("module", "module"),
        ("submodule.fc", "submodule.fc"),
        ("mymodule.module.x", "mymodule.module.x"),
    ],
)
def test_wrapper_segments_and_never_parts_of_them(name: str, core: str) -> None:
    assert without_wrappers(name) == core


def test_equal_names_win_and_ambiguous_ones_are_left() -> None:
    assert align(["module.a", "a"], ["a", "module.a"]) == {"module.a": "module.a", "a": "a"}
    assert align(["module.a", "_orig_mod.a"], ["a"]) == {}
    assert align(["enc.module.a"], ["enc.a"]) == {"enc.module.a": "enc.a"}


def test_exact_wants_every_name_and_shape() -> None:
    report = match(LIVE, LIVE, Exact()).report
    assert report.is_exact
    assert report.coverage == 1.0
    stored = specs(fc__weight=(3, 5), extra=(1,))
    text = refused(stored, LIVE, Exact())
    assert "`f.pt`: does not fit `model`, nothing was changed" in text
    assert "`fc.weight`: file has (3, 5) float32, object wants (3, 4) float32" in text
    assert "the file lacks `fc.bias`" in text
    assert "the object lacks `extra`" in text


def test_a_tied_name_is_filled_by_the_other() -> None:
    live = specs(a=(2,), b=(2,))
    report = match(specs(a=(2,)), live, Exact(), aliases={"b": "a"}).report
    assert (report.loaded, report.tied, report.missing) == (["a"], ["b"], [])
    assert report.coverage == 1.0
    assert match(specs(b=(2,)), live, Exact(), aliases={"b": "a"}).report.tied == ["a"]


def test_warm_takes_what_fits_and_says_the_rest() -> None:
    stored = specs(fc__weight=(3, 4), fc__bias=(7,), other=(1,))
    report = match(stored, LIVE, Warm()).report
    assert (report.loaded, report.unexpected) == (["fc.weight"], ["other"])
    assert [item.name for item in report.mismatched] == ["fc.bias"]
    assert report.coverage == pytest.approx(12 / 15)
    check(report, Warm(), "f.pt", "model")


def test_too_little_is_refused_and_nothing_always() -> None:
    stored = specs(fc__bias=(3,))
    text = refused(stored, LIVE, Warm())
    assert "only 20.0% of the elements are in the file, min_coverage=0.5 asks for more" in text
    check(match(stored, LIVE, Warm(min_coverage=0.2)).report, Warm(min_coverage=0.2), "f.pt", "model")
    text = refused(specs(x=(3,)), LIVE, Warm(min_coverage=0))
    assert "no name of the file is a name of the object with its shape" in text


def test_names_are_changed_in_order_then_dropped() -> None:
    policy = Warm(
        strip_prefix="backbone",
        add_prefix="net",
        rename={r"^net\.old\.": "net.new.", r"gamma$": "weight"},
        drop=["*.bias"],
    )
    names = ["backbone.old.gamma", "backbone.old.bias", "backboneish.x", "other"]
    assert policy_names(names, policy) == {
        "backbone.old.gamma": "net.new.weight",
        "backboneish.x": "net.backboneish.x",
        "other": "net.other",
    }


def test_drop_asks_the_old_and_the_new_name() -> None:
    assert policy_names(["a.x", "b.x"], Warm(rename={"^a": "c"}, drop=["a.*"])) == {"b.x": "b.x"}
    assert policy_names(["a.x", "b.x"], Warm(rename={"^a": "c"}, drop=["c.*"])) == {"b.x": "b.x"}
    report = match(specs(fc__weight=(3, 4), fc__bias=(3,)), LIVE, Warm(drop=["*bias"])).report
    assert report.notes == ["dropped 1 names of the file: `fc.bias`"]
    assert report.missing == ["fc.bias"]


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"`a\.x` and `b\.x` of the file both become `x`: mend Warm\(rename=\)"):
        policy_names(["a.x", "b.x"], Warm(rename={r"^[ab]\.": ""}))


@pytest.mark.parametrize(
    ("way", "stored", "live", "allowed"),
    [
        ("pad", (3, 4), (5, 4), True),
        ("pad", (3, 4), (5, 3), False),
        ("crop", (5, 4), (3, 4), True),
        ("crop", (3, 4), (5, 4), False),
        ("fit", (3, 9), (5, 4), True),
        ("fit", (3, 9), (3, 9, 1), False),
        ("fit", (0, 9), (3, 9), False),
    ],
)
def test_resizing_goes_one_way_unless_told(
    way: Any, stored: tuple[int, ...], live: tuple[int, ...], allowed: bool
) -> None:
    assert may_resize("embed.weight", stored, live, Warm(resize={"embed.*": way})) is allowed
    assert not may_resize("head.weight", stored, live, Warm(resize={"embed.*": way}))
    assert not may_resize("embed.weight", stored, live, Exact())


def test_a_resized_tensor_counts_for_the_part_that_is_loaded() -> None:
    report = match(specs(e=(3, 4)), specs(e=(6, 4)), Warm(resize={"*": "pad"})).report
    assert [str(item) for item in report.resized] == ["`e`: file has (3, 4) float32, object wants (6, 4) float32"]
    assert report.coverage == 0.5


@pytest.mark.parametrize(
    ("source", "target"), [(a, b) for a in sorted(DTYPES) for b in sorted(DTYPES) if a != b and is_lossless(a, b)]
)
def test_lossless_means_that_torch_gives_every_value_back(source: str, target: str) -> None:
    import torch

    dtype, size = getattr(torch, source), DTYPES[source].itemsize
    if size == 1:
        values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    elif size == 2:
        values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        values = torch.arange(65536, dtype=torch.int32).mul(32749).view(torch.float32).to(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    there = values.to(getattr(torch, target))
    assert torch.equal(there.to(wide).nan_to_num(0.5), values.to(wide).nan_to_num(0.5))


@pytest.mark.parametrize(
    ("source", "target", "policy", "verdict"),
    [
        ("float16", "float32", Exact(), "lossless"),
        ("float32", "float16", Exact(), "refused"),
        ("float32", "float16", Warm(), "checked"),
        ("float32", "float16", Warm(cast=False), "refused"),
        ("float32", "float16", Warm(cast="any"), "lossless"),
        ("bfloat16", "float16", Warm(), "checked"),
        ("complex64", "float32", Warm(), "refused"),
        ("complex64", "float32", Warm(cast="any"), "lossless"),
        ("complex128", "complex64", Warm(), "checked"),
        ("float32", "int64", Warm(), "refused"),
        ("int64", "int32", Warm(), "refused"),
        ("qint8", "float32", Warm(), "refused"),
    ],
)
def test_casts_by_policy(source: str, target: str, policy: Any, verdict: str) -> None:
    assert judge_cast(source, target, policy) == verdict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"(": ""}}, r"Warm: rename '\(' -> '': missing \)"),
        ({"rename": {"a": r"\2"}}, r"Warm: rename 'a' -> '\\\\2': invalid group reference"),
        ({"drop": "head.*"}, r"Warm: drop takes a list of patterns; write drop=\['head\.\*'\]"),
        ({"resize": {"*": "stretch"}}, "Warm: resize '\\*' is 'stretch'; it takes pad, crop, fit"),
        ({"min_coverage": 50}, "Warm: min_coverage is 50; it is a share, 0 to 1"),
        ({"cast": "lossy"}, "Warm: cast is 'lossy'; it takes True, False or 'any'"),
    ],
)
def test_policies_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Warm(**options)


def test_a_refusal_proposes_the_rename() -> None:
    live = specs(**{f"blocks__{i}__fc__weight": (8 + i, 4) for i in range(4)})
    stored = {f"net.backbone.{name}": spec for name, spec in live.items()}
    assert refused(stored, live, Exact()).endswith(r'Try holdfast.Warm(rename={r"^net\.backbone\.": ""})')


def test_the_report_is_read_in_seconds() -> None:
    live = specs(**{f"layers__{i}__fc__weight": (4, 4) for i in range(32)}, head=(2, 4))
    stored = {f"module.{name}": spec for name, spec in live.items()} | specs(head=(5, 4))
    del stored["module.head"]
    text = str(match(stored, live, Warm()).report)
    assert "renamed (32):\n  module.* as *  x32" in text
    assert "head  file has (5, 4) float32, object wants (2, 4) float32" in text
    text = str(match(specs(head=(2, 4)), live, Warm()).report)
    assert "missing from the file (32):\n  layers.{0..31}.fc.weight  x32" in text
