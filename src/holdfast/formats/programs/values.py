"""The parts that the JSON of a program is made of: sizes, tensors, and what operators are given.

Fields and their names follow ``torch/_export/serde/schema.py`` of torch 2.13; see ``schema`` for the whole.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from holdfast.formats.programs.text import check_device, check_formula, check_inert, check_name
from holdfast.spec import BY_EXPORT

Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Float = float | Literal["Infinity", "-Infinity", "NaN"]


class Strict(Struct, forbid_unknown_fields=True):
    """What has exactly the fields that are written here."""


class Choice(Strict, omit_defaults=True):
    """What has exactly one of its fields."""

    def __post_init__(self) -> None:
        count = sum(getattr(self, name) is not UNSET for name in self.__struct_fields__)
        if count != 1:
            raise ValueError(f"has {count} values where one is wanted")


class Device(Strict):
    """Where a tensor is."""

    type: str
    index: Annotated[int, Meta(ge=0, le=1 << 16)] | None = None

    def __post_init__(self) -> None:
        check_device(self.type)

    @property
    def location(self) -> str:
        """As map_location names it."""
        return self.type if self.index is None else f"{self.type}:{self.index}"


# -- sizes


class Hint(Choice):
    """What a symbol was when the program was exported."""

    as_int: Int | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class Expression(Strict):
    """A formula over symbols."""

    expr_str: str
    hint: Hint | None = None

    def __post_init__(self) -> None:
        check_formula(self.expr_str)


class SymInt(Choice):
    """An integer, or a formula."""

    as_expr: Expression | UnsetType = UNSET
    as_int: Int | UnsetType = UNSET


class SymFloat(Choice):
    """A float, or a formula."""

    as_expr: Expression | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET


class SymBool(Choice):
    """A bool, or a condition."""

    as_expr: Expression | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET


class TensorMeta(Strict):
    """What a tensor is."""

    dtype: int
    sizes: list[SymInt]
    requires_grad: bool
    device: Device
    strides: list[SymInt]
    storage_offset: SymInt
    layout: Annotated[int, Meta(ge=1, le=7)]

    def __post_init__(self) -> None:
        if self.dtype not in BY_EXPORT:
            raise ValueError(f"{self.dtype} is no dtype that is known")


# -- arguments


class Named(Strict):
    """A tensor, by the name of a value."""

    name: str

    def __post_init__(self) -> None:
        check_name(self.name)


class _SymArgument(Choice):
    """The value of a symbol, by name."""

    as_name: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.as_name) is str:
            check_name(self.as_name)


class SymIntArgument(_SymArgument):
    """An integer, or one by name."""

    as_int: Int | UnsetType = UNSET


class SymFloatArgument(_SymArgument):
    """A float, or one by name."""

    as_float: Float | UnsetType = UNSET


class SymBoolArgument(_SymArgument):
    """A bool, or one by name."""

    as_bool: bool | UnsetType = UNSET


class OptionalTensor(Choice):
    """A tensor, or None."""

    as_tensor: Named | UnsetType = UNSET
    as_none: bool | UnsetType = UNSET


class Complex(Strict):
    """A complex number."""

    real: Float
    imag: Float


class Value(Choice):
    """An input or output of a graph."""

    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_int: Int | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_string: str | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_sym_int: SymIntArgument | UnsetType = UNSET
    as_sym_float: SymFloatArgument | UnsetType = UNSET
    as_sym_bool: SymBoolArgument | UnsetType = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.as_string) is str:
            check_inert(self.as_string)  # it becomes part of a guard
