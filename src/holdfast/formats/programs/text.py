"""The texts in a program that torch turns into Python, and the little of each that is known to be harmless.

``torch.export.load`` of torch 2.13 gives sizes to ``sympy.sympify``, which calls ``eval``; makes the text of functions
out of names and guards and calls ``exec``; and follows dotted operator names through any module. So each text must be
one that the exporter writes: a name, an operator of a known library, a formula over sizes. All else is refused, by a
ValueError that says what was wanted. docs/design/009-programs.md has the facts.
"""

from __future__ import annotations

import ast
import keyword
import re
from typing import Any

import msgspec

from holdfast.state.paths import printable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,500}")
_PATH = re.compile(r"[A-Za-z0-9_ :/+@-]{1,200}(?:\.[A-Za-z0-9_ :/+@-]{1,200}){0,60}")
_INERT = re.compile(r"[A-Za-z0-9_ .,:/+@-]{0,200}")
_DEVICE = re.compile(r"[a-z]{1,16}")
_SHOWN = 80


def shown(text: object) -> str:
    """A text of the file for a message: escaped, and not longer than a line."""
    known = printable(str(text)[: _SHOWN + 1])
    return known if len(known) <= _SHOWN else known[:_SHOWN] + "..."


def check_name(text: str) -> None:
    """A name of a value: it becomes a variable of a Python function. Raises ValueError for any other."""
    if not _NAME.fullmatch(text) or keyword.iskeyword(text):
        raise ValueError(f"the name {shown(text)!r} is no plain name of letters, digits and _")


def check_path(text: str) -> None:
    """A dotted name of a parameter, buffer or submodule. Raises ValueError for any other."""
    if not _PATH.fullmatch(text) or any(part.startswith("__") for part in text.split(".")):
        raise ValueError(f"the name {shown(text)!r} is no plain dotted name")


def check_inert(text: str) -> None:
    """A text that may stand in any string of Python source: no quotes, brackets, backslashes or line ends.

    Raises ValueError for any other.
    """
    if not _INERT.fullmatch(text):
        raise ValueError(f"the text {shown(text)!r} has marks that could end a string of Python")


def check_device(text: str) -> None:
    """A kind of device, such as ``cuda``. Raises ValueError for any other."""
    if not _DEVICE.fullmatch(text):
        raise ValueError(f"{shown(text)!r} is no device")


# -- operators

LIBRARIES = frozenset({"aten", "prims", "quantized", "quantized_decomposed", "torchao", "torchvision"})
"""Namespaces of operators that compute on tensors."""
_OPERATOR = re.compile(r"torch\.ops\.([a-z_]+)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
REFUSED = frozenset({"from_file", "save", "load", "warn", "_print", "set_", "set", "format", "percentFormat"})
"""Operators of ``aten`` that reach files or print, or that give a tensor someone else's memory."""
HIGHER_ORDER = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in (
        "associative_scan",
        "cond",
        "map_impl",
        "scan",
        "while_loop",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    )
)
"""Operators that run graphs of the program itself."""
AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
"""Is given the kind of a device as text."""
_COMPARED = "eq ne le ge lt gt neg pos mul add sub floordiv mod pow truediv and_ or_ lshift rshift"
SYMBOLIC = frozenset(
    {f"_operator.{name}" for name in _COMPARED.split()}
    | {f"torch.{name}" for name in ("sym_not", "sym_int", "sym_float", "sym_ite", "sym_max", "sym_min", "_sym_sqrt")}
    | {"math.trunc"}
)
"""Functions on sizes: those that the exporter itself writes."""
_MODES = """
__interpolate __upsample _assert_async _assert_scalar _convolution_mode _functional_assert_async
_functional_assert_scalar _linalg_check_errors _linalg_eigh _linalg_svd _segment_reduce_backward _sparse_mm
_sparse_mm_reduce_impl conv1d conv2d conv3d div div_ divide divide_ einsum fft_fft fft_fft2 fft_fftn fft_hfft fft_hfft2
fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft
fft_rfft2 fft_rfftn gelu gelu_ gelu_backward index_reduce index_reduce_ linalg_cond linalg_eigh linalg_eigvalsh
linalg_lstsq linalg_matrix_norm linalg_norm linalg_qr linalg_svd linalg_svdvals meshgrid nanquantile pad pad_sequence
quantile scatter scatter_ scatter_reduce scatter_reduce_ searchsorted segment_reduce stft
"""
TEXT = frozenset({*(f"torch.ops.aten.{name}" for name in _MODES.split()), "torch.ops.torchao.choose_qparams_affine"})
"""Operators that may be given text: it names a mode, or says what an assertion means."""


def operator_kind(target: str) -> str:
    """``operator``, ``symbolic`` or ``higher-order``. Raises ValueError for any other target."""
    if target in SYMBOLIC:
        return "symbolic"
    if target in HIGHER_ORDER:
        return "higher-order"
    found = _OPERATOR.fullmatch(target)
    if found is None or found[1] not in LIBRARIES or found[2] in REFUSED or found[2].startswith("__"):
        raise ValueError(f"it calls {shown(target)}, which is not known to be harmless")
    return "operator"


def takes_text(target: str) -> bool:
    """Whether an operator may be given text."""
    return target.rpartition(".")[0] in TEXT


# -- symbolic sizes, as sympy's srepr writes them

_TOKEN = re.compile(
    r"\s*(?:([A-Za-z_][A-Za-z0-9_]*)|(-?[0-9]{1,20}(?![0-9.eE]))|'([A-Za-z0-9_.+-]{1,60})'|([(),=]))", re.ASCII
)
_SYMBOL = re.compile(r"(?:s|u|zf|zuf)[0-9]{1,6}")
_FLAGS = frozenset({"integer", "positive", "nonnegative", "negative", "nonzero", "real", "finite"})
_DECIMAL = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:e[+-]?[0-9]{1,3})?")
_FORMULA_SIZE, _FORMULA_DEPTH, _EXPONENT = 4096, 40, 64
_FUNCTIONS = """
Add Mul Mod Max Min Abs floor ceiling FloorDiv ModularIndexing CleanDiv CeilDiv PythonMod IntTrueDiv FloatTrueDiv
TruncToInt TruncToFloat RoundToInt RoundDecimal FloorToInt CeilToInt ToFloat Where Identity
IsNonOverlappingAndDenseIndicator Equality Unequality GreaterThan LessThan StrictGreaterThan StrictLessThan Eq Ne Ge Le
Gt Lt And Or Not
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Functions of sympy and torch that make a formula and no number of any size."""
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_CONSTANTS = frozenset({"true", "false", "oo", "zoo", "nan"})


class _Formula:
    """Reads ``Mul(Integer(2), Symbol('s0', positive=True))`` from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.token: tuple[str, str] = ("", "")
        self.next()

    def next(self) -> tuple[str, str]:
        """The token that was up, and goes to the one after it."""
        was = self.token
        if not self.text[self.at :].strip():
            self.token = ("end", "")
            return was
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            raise self.wrong()
        kinds = ("name", "number", "quoted", "mark")
        self.token = next((kind, text) for kind, text in zip(kinds, found.groups(), strict=True) if text is not None)
        self.at = found.end()
        return was

    def take(self, kind: str, text: str | None = None) -> str:
        if self.token[0] != kind or text not in (None, self.token[1]):
            raise self.wrong()
        return self.next()[1]

    def expression(self, depth: int = 0) -> str:
        """One formula; returns ``symbolic`` when a symbol is in it, else ``number``, or the digits of an integer."""
        name = self.take("name")
        if depth > _FORMULA_DEPTH:
            raise self.wrong()
        if name in _CONSTANTS:
            return "number"
        self.take("mark", "(")
        if name in ("Integer", "Rational", "Float"):
            found = self._number(name)
        elif name == "Symbol":
            found = self._symbol()
        elif name in FUNCTIONS or name in _POWERS:
            found = self._call(name, depth)
        else:
            raise self.wrong()
        self.take("mark", ")")
        return found

    def _number(self, name: str) -> str:
        if name == "Float":
            if not _DECIMAL.fullmatch(self.take("quoted")):
                raise self.wrong()
            for mark in (("mark", ","), ("name", "precision"), ("mark", "=")):
                self.take(*mark)
            if not 0 < int(self.take("number")) <= 200:
                raise self.wrong()
            return "number"
        digits = self.take("number")
        if name == "Rational":
            self.take("mark", ",")
            self.take("number")
        return digits

    def _symbol(self) -> str:
        if not _SYMBOL.fullmatch(self.take("quoted")):
            raise self.wrong()
        while self.token == ("mark", ","):
            self.next()
            if self.take("name") not in _FLAGS:
                raise self.wrong()
            self.take("mark", "=")
            if self.take("name") not in ("True", "False"):
                raise self.wrong()
        return "symbolic"

    def _call(self, name: str, depth: int) -> str:
        found = [self.expression(depth + 1)]
        while self.token == ("mark", ","):
            self.next()
            found.append(self.expression(depth + 1))
        if name in _POWERS and not (len(found) == 2 and _is_small(*found)):
            raise self.wrong()
        return "symbolic" if "symbolic" in found else "number"

    def wrong(self) -> ValueError:
        return ValueError(f"the size {shown(self.text)!r} is no formula over symbols such as s0")


def _is_small(base: str, exponent: str) -> bool:
    """Whether sympy computes no number of millions of digits: exponents are small, and only of what is small itself."""
    if exponent == "symbolic":
        return True
    small = exponent.lstrip("-").isdigit() and abs(int(exponent)) <= _EXPONENT
    return small and (base == "symbolic" or base.lstrip("-").isdigit())


def check_formula(text: str) -> None:
    """A symbolic size, as the exporter writes it. Raises ValueError for any other text."""
    if len(text) > _FORMULA_SIZE or not text.isascii():
        raise ValueError(f"the size {shown(text)!r} is no formula over symbols such as s0")
    formula = _Formula(text)
    formula.expression()
    if formula.token[0] != "end":
        raise formula.wrong()


# -- guards: conditions on the inputs, in Python

_GUARD = re.compile(r"[A-Za-z0-9_\[\]'(). ,:/+<>=!*%@-]{1,8192}")
_GUARD_DEPTH = 60
_CALLS = frozenset(
    {"max", "min", "abs", "round", "math.floor", "math.ceil", "math.trunc", "math.sqrt", "math.isnan"}
    | {"torch.sym_float", "torch.sym_int", "torch.sym_max", "torch.sym_min", "torch._sym_sqrt"}
)
_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
_NUMBERS = frozenset({"math.inf", "math.nan"})
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Div, ast.Pow)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def check_guard(text: str) -> None:
    """A condition on sizes and values of the inputs, ``L['x'].size()[0] % 2 == 0``; ValueError for any other."""
    refused = ValueError(f"the guard {shown(text)!r} is no comparison of the inputs' sizes")
    if not _GUARD.fullmatch(text) or text.count("(") > _FORMULA_SIZE // 4:
        raise refused
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refused from None
    if not _is_condition(tree, 0):
        raise refused


def _is_condition(tree: ast.expr, depth: int) -> bool:
    if depth > _GUARD_DEPTH:
        return False

    def inner(one: ast.expr) -> bool:
        return _is_condition(one, depth + 1)

    match tree:
        case ast.BoolOp(values=parts):
            return all(map(inner, parts))
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            return inner(operand)
        case ast.Compare(left=left, ops=ops, comparators=others):
            return all(isinstance(op, _COMPARISONS) for op in ops) and all(map(inner, [left, *others]))
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
            return abs(power) <= _EXPONENT and _is_source(left)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _OPERATORS[:-1]) and inner(left) and inner(right)
        case ast.Constant(value=value):
            return type(value) in (int, float, bool)
        case ast.Call(func=func, args=args, keywords=[]) if _dotted(func) in _CALLS:
            return all(map(inner, args))
    return _dotted(tree) in _NUMBERS or _is_source(tree)


def _is_source(tree: ast.expr) -> bool:
    """Whether this is an input, a part of one, or a size: ``L['x']['k'].size()[0]``."""
    match tree:
        case ast.Name(id="L"):
            return True
        case ast.Subscript(value=value, slice=ast.Constant(value=key)):
            return _is_source(value) and (type(key) is int or (type(key) is str and bool(_INERT.fullmatch(key))))
        case ast.Call(func=ast.Attribute(value=value, attr=method), args=[], keywords=[]):
            return method in _METHODS and _is_source(value)
    return False


def _dotted(tree: ast.expr) -> str:
    match tree:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return f"{module}.{name}"
    return ""


# -- trees of arguments


class Spec(msgspec.Struct, forbid_unknown_fields=True):
    """How arguments or results are nested, as ``torch.utils._pytree`` writes it."""

    type: str | None
    context: str | None
    children_spec: list[Spec]

    def __post_init__(self) -> None:
        if self.type is None:
            if self.context is not None or self.children_spec:
                raise ValueError("a leaf of a tree of arguments has something in it")
        elif self.type in _SEQUENCES:
            if self.context != "null":
                raise ValueError(f"a {self.type} in a tree of arguments has a context")
        elif self.type in _MAPPINGS:
            self.context = _keys(self.context or "").decode()
        else:
            raise ValueError(
                f"a tree of arguments holds a {shown(self.type)}; only tuples, lists and dicts are known to be harmless"
            )


_SEQUENCES = frozenset({"builtins.tuple", "builtins.list", "torch.fx.immutable_collections.immutable_list"})
_MAPPINGS = frozenset({"builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict"})


def _keys(context: str) -> bytes:
    """The keys of a dict: numbers, and text that may stand between quotes."""
    try:
        keys: list[Any] = msgspec.json.decode(context, type=list[str | int])
    except (msgspec.DecodeError, ValueError):
        raise ValueError(f"the keys {shown(context)!r} of a dict of arguments are no texts and integers") from None
    for key in keys:
        if type(key) is str:
            check_inert(key)
    return msgspec.json.encode(keys)


def checked_spec(text: str, *, of_call: bool = False) -> str:
    """A tree of arguments written anew. Raises ValueError for one of other classes than tuple, list and dict.

    Args:
        text: as the file has it.
        of_call: whether it is the tree of a call, (arguments, keywords): the keywords become names of parameters.
    """
    try:
        protocol, spec = msgspec.json.decode(text, type=tuple[int, Spec])
    except msgspec.ValidationError as reason:
        raise ValueError(str(reason)) from None
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise ValueError(f"the tree of arguments {shown(text)!r} is no JSON") from None
    if of_call:
        kinds = [child.type for child in spec.children_spec]
        if spec.type != "builtins.tuple" or kinds != ["builtins.tuple", "builtins.dict"]:
            raise ValueError("the arguments of the program's call are no tuple with a dict of keywords")
        for key in msgspec.json.decode(spec.children_spec[1].context or "[]"):
            check_name(str(key))
    return msgspec.json.encode((protocol, spec)).decode()
