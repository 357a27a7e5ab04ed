"""Programs of torch.export with something planted in them: what a stranger could write into a ``.pt2``.

Each plant changes an honest archive so that plain ``torch.export.load``, ``module()`` or a call makes a marker file,
where torch 2.13 lets it. ``STAGES`` says what was seen; the tests see it again.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Net(torch.nn.Module):
    """Has a parameter, a buffer, a constant, a dynamic batch, nested and constant inputs, and a graph in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))
        self.shift = torch.arange(2.0)

    def forward(self, x: Any, extra: Any, label: str = "abc", flag: int = 2) -> Any:
        with torch.no_grad():
            y = self.fc(x) * self.scale
        return {"out": y + self.shift * x.shape[0], "rest": [extra["k"], extra["m"][0]]}


def arguments() -> tuple[Any, ...]:
    """What ``Net`` is called with."""
    return (torch.ones(4, 3), {"k": torch.ones(2), "m": (torch.ones(1),)}, "abc", 2)


def honest() -> bytes:
    """The archive that is changed."""
    batch = torch.export.Dim("batch", max=50)
    shapes = {"x": {0: batch}, "extra": {"k": None, "m": (None,)}, "label": None, "flag": None}
    target = io.BytesIO()
    torch.export.save(torch.export.export(Net(), arguments(), dynamic_shapes=shapes), target)
    return target.getvalue()


class Program:
    """The members of an archive, to be changed; ``json`` is its ``models/model.json``."""

    def __init__(self, data: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.top = archive.namelist()[0].partition("/")[0]
            self.members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        self.json: Any = json.loads(self.members[MODEL])

    @property
    def module(self) -> Any:
        return self.json["graph_module"]

    @property
    def graph(self) -> Any:
        return self.module["graph"]

    @property
    def call(self) -> Any:
        """The signature of the whole program's call."""
        return self.module["module_call_graph"][0]["signature"]

    def data(self) -> bytes:
        self.members[MODEL] = json.dumps(self.json).encode()
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(f"{self.top}/{name}", content)
        return target.getvalue()

    def config(self, name: str) -> Any:
        return json.loads(self.members[name])["config"]

    def put_config(self, name: str, config: Any) -> None:
        self.members[name] = json.dumps({"config": config}).encode()

    def rename(self, old: str, new: str) -> None:
        """Gives a value of the graph another name, wherever it stands."""
        text = json.dumps(self.json).replace(f'"name": "{old}"', f'"name": {json.dumps(new)}')
        self.json = json.loads(text.replace(f'"{old}": {{', f"{json.dumps(new)}: {{"))


class Opens:
    """Unpickling it makes a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def code(marker: str) -> str:
    """An expression that makes the marker; harmless."""
    return f"open('{marker}','w')"


def saved(obj: Any) -> bytes:
    target = io.BytesIO()
    torch.save(obj, target)
    return target.getvalue()


def node(target: str, **inputs: Any) -> dict[str, Any]:
    """A node that is called for what it does, with arguments by position."""
    return {
        "target": target,
        "inputs": [{"name": name, "arg": arg, "kind": 1} for name, arg in inputs.items()],
        "outputs": [{"as_none": True}],
        "metadata": {},
        "name": "planted",
    }


# -- pickles


def sample_inputs(program: Program, marker: str) -> None:
    program.members[SAMPLES] = saved((arguments(), {"x": Opens(marker)}))


def pickled_weight(program: Program, marker: str) -> None:
    config = program.config(WEIGHTS)
    entry = config["fc.bias"]
    entry["use_pickle"], entry["path_name"] = True, "weight_9"
    program.put_config(WEIGHTS, config)
    program.members["data/weights/weight_9"] = saved(Opens(marker))


def pickled_constant(program: Program, marker: str) -> None:
    config = program.config(CONSTANTS)
    config["shift"]["use_pickle"], config["shift"]["path_name"] = True, "tensor_9"
    program.put_config(CONSTANTS, config)
    program.members["data/constants/tensor_9"] = saved(Opens(marker))


def opaque_object(program: Program, marker: str) -> None:
    config = program.config(CONSTANTS)
    config["extra"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    program.put_config(CONSTANTS, config)
    program.members["data/constants/opaque_obj_0"] = pickle.dumps(Opens(marker), protocol=2)


def custom_object(program: Program, marker: str) -> None:
    config = program.config(CONSTANTS)
    config["extra"] = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    program.put_config(CONSTANTS, config)
    program.members["data/constants/custom_obj_0"] = saved(Opens(marker))


def old_constants(program: Program, marker: str) -> None:
    del program.members[CONSTANTS]
    program.members["data/constants/model.pt"] = saved({"shift": Opens(marker)})


def old_weights(program: Program, marker: str) -> None:
    del program.members[WEIGHTS]
    program.members["data/weights/model.pt"] = saved({"fc.weight": Opens(marker)})


# -- operators


def any_function(program: Program, marker: str) -> None:
    program.graph["nodes"].insert(0, node("torch.os.mkdir", path={"as_string": marker}))


def imported_function(program: Program, marker: str) -> None:
    """A helper of torch that imports the class that its first argument names."""
    Path(f"{marker}_module.py").write_text(f"open({marker!r}, 'w')\n")
    name = f"{Path(marker).name}_module.A"
    helper = "torch.export.custom_ops._call_custom_autograd_function_in_pre_dispatch"
    program.graph["nodes"].insert(0, node(helper, name={"as_string": name}))


def function_as_argument(program: Program, marker: str) -> None:
    called = node("_operator.call", f={"as_operator": "torch.os.mkdir"}, path={"as_string": marker})
    program.graph["nodes"].insert(0, called)


def through_math(program: Program, marker: str) -> None:
    program.graph["nodes"].insert(0, node("math.__loader__.load_module", name={"as_string": "antigravity"}))


def writing_operator(program: Program, marker: str) -> None:
    planted = node("torch.ops.aten.from_file.default", filename={"as_string": marker}, shared={"as_bool": True})
    planted["inputs"].append({"name": "size", "arg": {"as_int": 1}, "kind": 1})
    planted["outputs"] = [{"as_tensor": {"name": "planted"}}]
    program.graph["tensor_values"]["planted"] = program.graph["tensor_values"]["x"]
    program.graph["nodes"].insert(0, planted)


def saving_operator(program: Program, marker: str) -> None:
    planted = node("torch.ops.aten.save.default", item={"as_string": "text"}, filename={"as_string": marker})
    program.graph["nodes"].insert(0, planted)


def wrapped_function(program: Program, marker: str) -> None:
    planted = node("torch.ops.higher_order.wrap", f={"as_operator": "torch.os.mkdir"}, path={"as_string": marker})
    program.graph["nodes"].insert(0, planted)


def library(program: Program, marker: str) -> None:
    compiled = shared_object(marker)
    program.graph["nodes"].insert(0, node("torch.ops.load_library", path={"as_string": compiled}))


def target_of_metadata(program: Program, marker: str) -> None:
    program.graph["nodes"][0]["metadata"]["source_fn_stack"] = f"x,torch.os.mkdir('{marker}')"


# -- text that becomes Python


def symbolic_size(program: Program, marker: str) -> None:
    program.graph["sym_int_values"]["sym_size_int_1"]["as_expr"]["expr_str"] = code(marker)


def size_of_a_tensor(program: Program, marker: str) -> None:
    program.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": code(marker)}}


def guard(program: Program, marker: str) -> None:
    program.json["guards_code"] = [f"{code(marker)} or True"]


def constant_text(program: Program, marker: str) -> None:
    text = f"' or {code(marker)} or '"
    program.graph["inputs"][7] = {"as_string": text}


def text_for_a_number(program: Program, marker: str) -> None:
    program.graph["inputs"][8] = {"as_int": f"' or {code(marker)} or '"}


def key_of_an_input(program: Program, marker: str) -> None:
    """The key stands in the text of a guard's message, between double quotes."""
    key = f'k"+str(open(bytes({list(marker.encode())}).decode(),chr(119)))+"'
    program.call["in_spec"] = program.call["in_spec"].replace('\\"k\\"', json.dumps(json.dumps(key))[1:-1])
    args = arguments()
    program.members[SAMPLES] = saved(((args[0], {key: args[1]["k"], "m": args[1]["m"]}, *args[2:]), {}))


def name_of_an_input(program: Program, marker: str) -> None:
    """A default in the head of a function is computed when the function is made."""
    program.module["signature"]["input_specs"][-1]["constant_input"]["name"] = f"flag={code(marker)}"


def name_of_a_value(program: Program, marker: str) -> None:
    program.rename("add", f"a = {code(marker)}; add")


def name_of_an_argument(program: Program, marker: str) -> None:
    program.call["forward_arg_names"] = ["x", "extra", "label", f"flag={code(marker)}"]


def name_of_a_parameter(program: Program, marker: str) -> None:
    new = f'fc", {code(marker)}) or (self, "bias'
    for spec in program.module["signature"]["input_specs"]:
        if spec.get("parameter", {}).get("parameter_name") == "fc.bias":
            spec["parameter"]["parameter_name"] = new
    config = program.config(WEIGHTS)
    config[new] = config.pop("fc.bias")
    program.put_config(WEIGHTS, config)


def name_of_a_keyword(program: Program, marker: str) -> None:
    called = program.graph["nodes"][1]
    called["inputs"].append({"name": f"a={code(marker)}, b", "arg": {"as_bool": True}, "kind": 2})


def name_of_a_graph(program: Program, marker: str) -> None:
    program.graph["nodes"][1]["inputs"][1]["arg"]["as_graph"]["name"] = f"a if {code(marker)} else self"


def name_in_text(program: Program, marker: str) -> None:
    called = program.graph["nodes"][1]
    called["inputs"].append(
        {"name": "", "arg": {"as_string_to_argument": {f"{code(marker)}": {"as_int": 1}}}, "kind": 1}
    )


# -- trees


def _spec(program: Program, kind: str, context: Any) -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    program.call["out_spec"] = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf, leaf, leaf]}])


def default_factory(program: Program, marker: str) -> None:
    Path(f"{marker}_module.py").write_text(f"open({marker!r}, 'w')\n")
    context = {"default_factory_module": Path(marker).name + "_module", "default_factory_name": "x", "dict_context": []}
    _spec(program, "collections.defaultdict", context)


def enum_key(program: Program, marker: str) -> None:
    Path(f"{marker}_module.py").write_text(f"open({marker!r}, 'w')\n")
    context = [{"__enum__": True, "fqn": f"{Path(marker).name}_module:A", "name": "B"}]
    _spec(program, "builtins.dict", json.dumps(context))


def namedtuple_class(program: Program, marker: str) -> None:
    Path(f"{marker}_module.py").write_text(f"open({marker!r}, 'w')\n")
    _spec(program, "collections.namedtuple", json.dumps(f"{Path(marker).name}_module.A"))


def verifier(program: Program, marker: str) -> None:
    program.json["verifiers"] = [code(marker)]


def device(program: Program, marker: str) -> None:
    program.graph["tensor_values"]["x"]["device"] = {"type": code(marker), "index": None}


def range_of_a_symbol(program: Program, marker: str) -> None:
    program.json["range_constraints"] = {"s77": {"min_val": code(marker), "max_val": 50}}


# -- members


def compiled_member(program: Program, marker: str) -> None:
    program.members["data/aotinductor/model/wrapper.so"] = Path(shared_object(marker)).read_bytes()
    program.members["data/aotinductor/model/wrapper_metadata.json"] = b'{"AOTI_DEVICE_KEY": "cpu"}'


def source_member(program: Program, marker: str) -> None:
    """Text in C++ that torch hands to the compiler with the flags that stand beside it."""
    program.members["data/aotinductor/model/model.wrapper.cpp"] = b"int main() {}"
    program.members["data/aotinductor/model/wrapper_metadata.json"] = b'{"AOTI_DEVICE_KEY": "cpu"}'
    flags = {"cflags": [], "ldflags": [], "libraries": [], "libraries_dirs": [], "include_dirs": [], "definitions": []}
    flags |= {"aot_mode": True, "compile_only": False, "use_relative_path": False, "compiler": f"touch {marker} ;"}
    flags |= {"passthrough_args": []}
    for step in ("compile", "linker"):
        program.members[f"data/aotinductor/model/model.wrapper_{step}_flags.json"] = json.dumps(flags).encode()


def old_format(program: Program, marker: str) -> bytes:
    """An archive of torch 2.1 to 2.7, which torch.export.load tries when it can't read a newer one."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("serialized_exported_program.json", json.dumps(program.json))
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", saved({"x": Opens(marker)} if name == "constants" else {}))
        archive.writestr("version", "8.20")
    return target.getvalue()


def shared_object(marker: str) -> str:
    """A library that makes the marker when it is loaded."""
    source, target = Path(f"{marker}.c"), f"{marker}.so"
    source.write_text(
        f'#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ FILE *f = fopen("{marker}", "w");'
        " if (f) fclose(f); }\n"
    )
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler:
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(source)], check=True)
    else:
        Path(target).write_bytes(b"\x7fELF")
    return target


_MADE: tuple[Callable[[Program, str], bytes | None], ...] = (
    sample_inputs,
    pickled_weight,
    pickled_constant,
    opaque_object,
    custom_object,
    old_constants,
    old_weights,
    any_function,
    imported_function,
    function_as_argument,
    through_math,
    writing_operator,
    saving_operator,
    wrapped_function,
    library,
    target_of_metadata,
    symbolic_size,
    size_of_a_tensor,
    guard,
    constant_text,
    text_for_a_number,
    key_of_an_input,
    name_of_a_value,
    name_of_an_input,
    name_of_an_argument,
    name_of_a_parameter,
    name_of_a_keyword,
    name_of_a_graph,
    name_in_text,
    default_factory,
    enum_key,
    namedtuple_class,
    verifier,
    device,
    range_of_a_symbol,
    compiled_member,
    source_member,
    old_format,
)
PLANTS = {made.__name__: made for made in _MADE}
"""Every plant by its name."""


def planted(data: bytes, name: str, marker: str) -> bytes:
    """The honest archive with one thing changed."""
    program = Program(data)
    return PLANTS[name](program, marker) or program.data()


STAGES: dict[str, str] = {
    **dict.fromkeys(("sample_inputs", "pickled_weight", "pickled_constant", "opaque_object"), "load"),
    **dict.fromkeys(("old_constants", "old_weights", "old_format"), "load"),
    **dict.fromkeys(("imported_function", "writing_operator", "guard", "constant_text", "text_for_a_number"), "call"),
    **dict.fromkeys(("key_of_an_input", "name_of_a_parameter", "name_of_a_keyword"), "call"),
    **dict.fromkeys(("symbolic_size", "size_of_a_tensor", "name_of_an_input", "default_factory", "enum_key"), "load"),
    **dict.fromkeys(("compiled_member", "source_member"), "load"),
}
"""Where torch 2.13 runs a plant: in torch.export.load, or when what module() gives is called. It runs no other."""
HARMLESS = frozenset({"target_of_metadata"})
"""Plants in what is dropped before torch sees it."""
