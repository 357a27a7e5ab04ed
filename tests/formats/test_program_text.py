"""The texts of a program that torch turns into Python: what the exporter writes is known, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
import torch

from holdfast.formats.programs.text import REFUSED, TEXT, check_formula, check_guard, operator_kind

IS_213 = torch.__version__.startswith("2.13.")


NEVER = """
Delete Float Int _mixed_dtypes_linear _set_item _sparse_mm_reduce_impl_backward _sparse_semi_structured_linear
_sparse_semi_structured_tile _test_ambiguous_defaults _test_string_default add any capitalize center clear copy count
device dict endswith eq expandtabs find ge get get_autocast_dtype gt index inductor_random isalnum isalpha isdecimal
isdigit isidentifier islower isnumeric isprintable isspace istitle isupper items join keys le len list ljust lower
lstrip lt ne ord partition pop popitem remove replace rfind rindex rjust rpartition rsplit rstrip setdefault slice
sort sorted split splitlines startswith strip swapcase title update upper values zfill
"""
"""Operators that take text, and that no exported program gives any: of texts themselves, of dicts, of tests."""


def test_every_operator_that_takes_text_was_looked_at() -> None:
    """A new operator of torch that takes text is not given any until someone has read what it does with it."""
    import torch.ao.quantization.fx._decomposed

    unknown = set()
    for schema in torch._C._jit_get_all_schemas():
        library, _, name = schema.name.partition("::")
        target = f"torch.ops.{library}.{name}"
        if any("str" in str(one.type) for one in schema.arguments):
            with contextlib.suppress(ValueError):
                operator_kind(f"{target}.default")
                if target not in TEXT and name not in NEVER.split():
                    unknown.add(target)
    if IS_213:
        assert not unknown
    files = {s.name for s in torch._C._jit_get_all_schemas() if any("file" in one.name for one in s.arguments)}
    reached = {name for name in files if name.startswith("aten::")}
    assert reached
    assert {name.partition("::")[2] for name in reached} <= REFUSED


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.load_library",
        "torch.ops.higher_order.wrap",
        "torch.ops.aten.add",
        "torch.ops.aten.add.Tensor.__call__",
        "_operator.call",
        "_operator.methodcaller",
        "builtins.eval",
        "math.__loader__.load_module",
        "#triton:x",
        "torch.ops.higher_order.call_torchbind",
        "torch.ops.prim.Print.default",
        "torch.ops.aten.__class__.default",
        "torch.ops.mylib.run.default",
        "",
        "torch.ops.aten.add.Tensor\n",
    ],
)
def test_targets_that_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match="is not known to be harmless"):
        operator_kind(target)


FORMULAS = [
    "Symbol('s77', positive=True, integer=True)",
    "Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))",
    "FloorDiv(Symbol('u0'), Integer(2))",
    "Pow(Symbol('s0'), Integer(2))",
    "Pow(Integer(2), Symbol('s0', integer=True))",
    "IntTrueDiv(Symbol('s0'), Integer(3))",
    "And(GreaterThan(Symbol('u0', integer=True), Integer(1)), StrictLessThan(Symbol('u0'), Symbol('s1')))",
    "Mul(Float('1.5', precision=53), Rational(-1, 3), true)",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_that_the_exporter_writes(text: str) -> None:
    check_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s0",
        "2*s0",
        "Symbol('s0",
        "Symbol('x')",
        "Symbol('s0', evil=True)",
        "Symbol('s0', integer=open)",
        "open('x')",
        "Add(open('x'), Integer(1))",
        "Symbol('s0').args",
        "Symbol('s0') or 1",
        "Add()",
        "Integer(1",
        "Integer('1')",
        "Pow(Integer(9), Integer(999999))",
        "Pow(Add(Integer(9), Integer(9)), Integer(9))",
        "Pow(Pow(Integer(9), Integer(9)), Integer(9))",
        "LShift(Integer(1), Integer(999999999))",
        "Integer(1);Integer(2)",
        "Lambda(Symbol('s0'), Integer(1))",
        "Function('f')",
        "Integer(1)\n",
        "__import__('os')",
        "Symbol('s0', integer=True))",
        "Add(" * 50 + "Integer(1)" + ")" * 50,
        "Float('1e', precision=53)",
        "Integer(1) if true else false",
        "[Integer(1)]",
        'Symbol("s0")',
        "Mod(Symbol('s0'), Integer(2),)",
        "Integer(0x10)",
        "é",
    ],
)
def test_formulas_that_are_refused(text: str) -> None:
    if text == "Integer(1)\n":  # white space means nothing
        check_formula(text)
        return
    with pytest.raises(ValueError, match="is no formula over symbols"):
        check_formula(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[0] % 2 == 0",
        "2 <= L['x'].size()[0] and L['x'].size()[0] <= 10",
        "L['flat_args'][0].size()[1] != 3",
        "(4*L['x'].size()[0]) // (L['x'].size()[0] // 2) == 8",
        "math.floor(L['x'].size()[0] / 2) == 2",
        "not L['flag']",
        "L['x']['k'].stride()[0] == max(1, L['x'].size()[0])",
        "L['x'].size()[0] ** 2 > 4",
        "-L['n'] < 1.5",
    ],
)
def test_guards_that_the_exporter_writes(text: str) -> None:
    check_guard(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "open('x')",
        "L['x'].data",
        "L['x'].__class__",
        "(lambda: 1)()",
        "L['x'].size(1)",
        "[L]",
        "L['x'].size()[L]",
        "x == 1",
        "L['x'] == 'a'",
        "L['x' + 'y']",
        "9**9**9",
        "L['x'] ** 999",
        "(L['n'] ** 9) ** 9",
        "f'{L}'",
        "L['x'] if L else 1",
        "L['x'] == 1\nopen('x')",
        "L['x'] == 1 #",
        "L['a\\'b'] == 1",
        'L["x"] == 1',
        "L['x'] == (y := 1)",
        "L['x'] in L",
        "math.exec(1)",
        "torch.load('x')",
        "L['x'] == 1, 2",
        "L['(']['x'] == 1",
        "max(*L)",
        "abs(x=1)",
        "1 ==",
        "(" * 300,
        "~L['x']",
        "L['x'] is L",
        "1 @ 2",
    ],
)
def test_guards_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no comparison of the inputs' sizes"):
        check_guard(text)
