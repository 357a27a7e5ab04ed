"""The JSON of a program: only what is known to be harmless has a place in it, and reading it is the audit.

Fields and their names follow ``torch/_export/serde/schema.py`` of torch 2.13 (schema 8). A field that is not here, two
fields where one is wanted, a text that ``text`` does not know: each is refused, and the message says where it stands.
What only debugging needs (``metadata``) is read and dropped.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from holdfast.formats.programs.text import (
    AUTOCAST,
    check_device,
    check_guard,
    check_inert,
    check_name,
    check_path,
    checked_spec,
    operator_kind,
    shown,
    takes_text,
)
from holdfast.formats.programs.values import (
    Choice,
    Complex,
    Device,
    Float,
    Int,
    Named,
    OptionalTensor,
    Strict,
    SymBool,
    SymBoolArgument,
    SymFloat,
    SymFloatArgument,
    SymInt,
    SymIntArgument,
    TensorMeta,
    Value,
)

_RANGE = re.compile(r"(?:(?:s|u|zf|zuf)[0-9]{1,5})|[A-Za-z0-9_ *+/()%,-]{1,512}")
_COUNTED = re.compile(r"(?:u|zuf)(?![0-9]{1,5}\Z)")
"""Keys that begin as unbacked symbols do: torch counts up to their number."""
_FILE = re.compile(r"(?:weight|tensor)_[0-9]{1,9}")
_VERSION = re.compile(r"[A-Za-z0-9.+<=_-]{0,64}")


class Argument(Choice):
    """What an operator is given, or gives."""

    as_none: bool | UnsetType = UNSET
    as_tensor: Named | UnsetType = UNSET
    as_tensors: list[Named] | UnsetType = UNSET
    as_nested_tensors: list[list[Named]] | UnsetType = UNSET
    as_optional_tensor: OptionalTensor | UnsetType = UNSET
    as_optional_tensors: list[OptionalTensor] | UnsetType = UNSET
    as_int: Int | UnsetType = UNSET
    as_ints: list[Int] | UnsetType = UNSET
    as_int_lists: list[list[Int]] | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_floats: list[Float] | UnsetType = UNSET
    as_float_lists: list[list[Float]] | UnsetType = UNSET
    as_complex: Complex | UnsetType = UNSET
    as_string: str | UnsetType = UNSET
    as_strings: list[str] | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET
    as_bools: list[bool] | UnsetType = UNSET
    as_sym_int: SymIntArgument | UnsetType = UNSET
    as_sym_ints: list[SymIntArgument] | UnsetType = UNSET
    as_sym_float: SymFloatArgument | UnsetType = UNSET
    as_sym_floats: list[SymFloatArgument] | UnsetType = UNSET
    as_sym_bool: SymBoolArgument | UnsetType = UNSET
    as_sym_bools: list[SymBoolArgument] | UnsetType = UNSET
    as_scalar_type: Annotated[int, Meta(ge=1, le=1 << 10)] | UnsetType = UNSET
    as_memory_format: Annotated[int, Meta(ge=1, le=4)] | UnsetType = UNSET
    as_layout: Annotated[int, Meta(ge=1, le=7)] | UnsetType = UNSET
    as_device: Device | UnsetType = UNSET
    as_graph: GraphArgument | UnsetType = UNSET


class GraphArgument(Strict):
    """A graph that an operator runs."""

    name: str
    graph: Graph

    def __post_init__(self) -> None:
        check_name(self.name)


class NamedArgument(Strict):
    """An argument of an operator."""

    name: str
    arg: Argument
    kind: Annotated[int, Meta(ge=0, le=2)] | None = None

    def __post_init__(self) -> None:
        if self.name and not (self.name.isidentifier() and self.name.isascii()):  # `from` is one of an operator's
            check_name(self.name)


class Node(Strict):
    """One call of an operator."""

    target: str
    inputs: list[NamedArgument]
    outputs: list[Argument]
    metadata: dict[str, str]
    is_hop_single_tensor_return: bool | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        kind = operator_kind(self.target)
        self.metadata = {}
        if self.name is not None:
            check_name(self.name)
        for one in self.inputs:
            text = one.arg.as_string is not UNSET or one.arg.as_strings is not UNSET
            if text and self.target == AUTOCAST:
                check_device(str(one.arg.as_string))
            elif text and not takes_text(self.target):
                raise ValueError(f"{self.target} is given text, and is no operator that is known to take a mode")
            if one.arg.as_graph is not UNSET and kind != "higher-order":
                raise ValueError(f"{self.target} is given a graph to run")
            if kind == "higher-order" and one.name:
                check_name(one.name)
        for given in self.outputs:
            if given.as_graph is not UNSET:
                raise ValueError(f"{self.target} gives a graph")


class Graph(Strict):
    """The calls of a program, or of a graph in it."""

    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]
    sym_int_values: dict[str, SymInt]
    sym_bool_values: dict[str, SymBool]
    is_single_tensor_return: bool = False
    custom_obj_values: dict[str, Any] = field(default_factory=dict)
    sym_float_values: dict[str, SymFloat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.custom_obj_values:
            raise ValueError("it works on objects of classes that a library defines in C++")
        for values in (self.tensor_values, self.sym_int_values, self.sym_bool_values, self.sym_float_values):
            for name in values:
                check_name(name)


# -- the signature


class UserInput(Strict):
    """An input of the caller."""

    arg: Value


class ConstantValue(Choice):
    """A value that the program was exported for."""

    as_none: bool | UnsetType = UNSET
    as_int: Int | UnsetType = UNSET
    as_float: Float | UnsetType = UNSET
    as_string: str | UnsetType = UNSET
    as_bool: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.as_string) is str:
            check_inert(self.as_string)


class ConstantInput(Strict):
    """An input that must be what it was."""

    name: str
    value: ConstantValue

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)


class ParameterInput(Strict):
    """A parameter of the model."""

    arg: Named
    parameter_name: str

    def __post_init__(self) -> None:
        check_path(self.parameter_name)


class BufferInput(Strict):
    """A buffer of the model."""

    arg: Named
    buffer_name: str
    persistent: bool

    def __post_init__(self) -> None:
        check_path(self.buffer_name)


class ConstantTensor(Strict):
    """A tensor that is no parameter and no buffer."""

    arg: Named
    tensor_constant_name: str

    def __post_init__(self) -> None:
        check_path(self.tensor_constant_name)


class InputSpec(Choice):
    """What one input of the graph is."""

    user_input: UserInput | UnsetType = UNSET
    parameter: ParameterInput | UnsetType = UNSET
    buffer: BufferInput | UnsetType = UNSET
    tensor_constant: ConstantTensor | UnsetType = UNSET
    constant_input: ConstantInput | UnsetType = UNSET


class Loss(Strict):
    """An output that is a loss."""

    arg: Named


class BufferOutput(Strict):
    """The new value of a buffer."""

    arg: Named
    buffer_name: str

    def __post_init__(self) -> None:
        check_path(self.buffer_name)


class ParameterOutput(Strict):
    """The new value, or the gradient, of a parameter."""

    arg: Named
    parameter_name: str

    def __post_init__(self) -> None:
        check_path(self.parameter_name)


class InputOutput(Strict):
    """The new value, or the gradient, of an input."""

    arg: Named
    user_input_name: str

    def __post_init__(self) -> None:
        check_name(self.user_input_name)


class OutputSpec(Choice):
    """What one output of the graph is."""

    user_output: UserInput | UnsetType = UNSET
    loss_output: Loss | UnsetType = UNSET
    buffer_mutation: BufferOutput | UnsetType = UNSET
    parameter_mutation: ParameterOutput | UnsetType = UNSET
    gradient_to_parameter: ParameterOutput | UnsetType = UNSET
    gradient_to_user_input: InputOutput | UnsetType = UNSET
    user_input_mutation: InputOutput | UnsetType = UNSET


class Signature(Strict):
    """What the inputs and outputs of the graph are."""

    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class CallSignature(Strict):
    """How a module is called."""

    inputs: list[Value]
    outputs: list[Value]
    in_spec: str
    out_spec: str
    forward_arg_names: list[str] | None = None

    def __post_init__(self) -> None:
        self.in_spec = checked_spec(self.in_spec, of_call=True)
        self.out_spec = checked_spec(self.out_spec)
        for name in self.forward_arg_names or ():
            check_name(name)


class CallEntry(Strict):
    """A module of the program."""

    fqn: str
    signature: CallSignature | None = None

    def __post_init__(self) -> None:
        if self.fqn:
            check_path(self.fqn)


class GraphModule(Strict):
    """The graph, and how it is called."""

    graph: Graph
    signature: Signature
    module_call_graph: list[CallEntry]
    metadata: dict[str, str] = field(default_factory=dict)
    treespec_namedtuple_fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metadata = {}
        if self.treespec_namedtuple_fields:
            names = ", ".join(map(shown, list(self.treespec_namedtuple_fields)[:3]))
            raise ValueError(f"its arguments or results hold the class {names}")


# -- the whole


class Range(Strict):
    """Between what a symbol may be."""

    min_val: Int | None
    max_val: Int | None


class SchemaVersion(Strict):
    """Of this form of JSON."""

    major: int
    minor: int


class Program(Strict):
    """A program of ``torch.export``."""

    graph_module: GraphModule
    opset_version: dict[str, int]
    range_constraints: dict[str, Range]
    schema_version: SchemaVersion
    verifiers: Annotated[list[Literal["TRAINING", "ATEN"]], Meta(min_length=1)]
    torch_version: str = ""
    guards_code: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in self.range_constraints:
            if not _RANGE.fullmatch(key) or _COUNTED.match(key):
                raise ValueError(f"{shown(key)!r} is no symbol that may have a range")
        for name in self.opset_version:
            check_name(name)
        if not _VERSION.fullmatch(self.torch_version):
            raise ValueError(f"{shown(self.torch_version)!r} is no version of torch")
        for guard in self.guards_code:
            check_guard(guard)


class Payload(Strict):
    """Where a tensor of the program is."""

    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None = None

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(self.path_name):
            raise ValueError(f"{shown(self.path_name)!r} is no file of a tensor")


class Payloads(Strict):
    """The tensors of the program, by name."""

    config: dict[str, Payload]

    def __post_init__(self) -> None:
        for name in self.config:
            check_path(name)


def decoded(data: bytes, kind: type[Any]) -> Any:
    """One JSON member.

    Raises:
        ValueError: something in it is not known to be harmless; says what and where.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except msgspec.DecodeError as reason:
        raise ValueError(str(reason)) from None
