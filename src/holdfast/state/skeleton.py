"""A module tree as Python source to start a new class from.

The names and values come from a file, so the text must be inert whoever wrote them: names become identifiers only
when they are plain ones, values are literals, and everything else stands in comments, escaped.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from holdfast.spec import TensorSpec
from holdfast.state.layers import CONSTRUCTORS, CONTAINERS, Layer, layer_of, plain_value, required, torch_name
from holdfast.state.modules import ROOT, Module, state_of, submodules, tensor_of, what_is
from holdfast.state.values import ATOMS, Tree

_LONG = 200
"""Characters of the longest literal; a longer value is only mentioned."""
_UNKNOWN: Any = object()
_TAKEN = frozenset({"nn", "torch", "OrderedDict", "self", "super", "float"})

SpecOf = Callable[[Tree], TensorSpec | None]
"""What a leaf of the tree is; None for tensors of several parts."""


def skeleton(modules: Mapping[str, Module], spec_of: SpecOf) -> str:
    """The source of modules.

    Layers of torch.nn are constructed with the arguments that their pickles hold; other classes become classes whose
    ``__init__`` makes their parts and whose ``forward`` is still to be written.

    Args:
        modules: by name; ``""`` when there is only one.
        spec_of: what a tensor leaf is.

    Returns:
        Python source that imports torch alone and defines ``model``, or one variable for each module.
    """
    writer = _Writer(spec_of)
    lines = []
    for name, module in modules.items():
        made = writer.expression(module, root=True)
        lines.append(f"{_identifier(name or 'model', 'model')} = {made}")
    imports = ["import torch", "from torch import nn"]
    if writer.ordered:
        imports.insert(0, "from collections import OrderedDict\n")
    return "\n".join([*imports, "", *writer.classes(), "", *lines, ""])


def call_text(layer: Layer) -> str:
    """The call that constructs a layer: ``nn.Conv2d(1, 4, kernel_size=(3, 3))``."""
    given: list[str] = []
    for argument, value in layer.arguments.items():
        text = call_text(value) if isinstance(value, Layer) else _literal(value)
        alone = len(given) < 2 and argument in required(layer.name)
        given.append(text if alone else f"{argument}={text}")
    return f"nn.{layer.name}({', '.join(given)})"


def outline(module: Module) -> Iterator[tuple[str, str]]:
    """The parts of a module: dotted path, and the call or, of other classes, the name."""
    stack = [("", module)]
    while stack:
        path, part = stack.pop()
        layer = layer_of(part) if torch_name(part) in CONSTRUCTORS else None
        yield path or ROOT, part.class_name if layer is None else call_text(layer)
        if layer is None:
            below = [(f"{path}.{name}" if path else name, child) for name, child in part.children.items()]
            stack += [(name, child) for name, child in reversed(below) if isinstance(child, Module)]


class _Writer:
    """Collects the classes that a module tree needs; equal ones are written once."""

    def __init__(self, spec_of: SpecOf) -> None:
        self._spec_of = spec_of
        self._bodies: dict[tuple[str, tuple[str, ...]], str] = {}
        self._names: set[str] = set()
        self.ordered = False

    def classes(self) -> Iterator[str]:
        for (title, body), name in self._bodies.items():
            yield from ("", f"class {name}(nn.Module):  # {title}", *body, "")

    def expression(self, module: Module, *, root: bool = False) -> str:
        """The expression that constructs a module; its class is written first where it needs one."""
        name = torch_name(module)
        layer = layer_of(module) if name in CONSTRUCTORS else None
        if layer is not None:
            return call_text(layer)
        if name in CONTAINERS and not (module.hooks or module.parameters or module.buffers):
            made = self._container(name, module)
            if made is not None:
                return made
        body = tuple(self._body(module, root=root))
        title = ascii(module.class_name)[1:-1]
        known = self._bodies.get((title, body))
        if known is None:
            known = self._bodies[title, body] = self._fresh(module.class_name.rpartition(".")[2])
        return f"{known}()"

    def _container(self, name: str, module: Module) -> str | None:
        """A Sequential, ModuleList or ModuleDict; None where its names or parts can't be given to its constructor."""
        parts = {key: child for key, child in module.children.items() if isinstance(child, Module)}
        if len(parts) != len(module.children) or not all(_is_child(key) for key in parts):
            return None
        numbered = list(parts) == [str(index) for index in range(len(parts))]
        if name == "ModuleList" and not numbered:
            return None
        made = {key: self.expression(child) for key, child in parts.items()}
        if name == "ModuleDict":
            return f"nn.ModuleDict({{{', '.join(f'{key!a}: {one}' for key, one in made.items())}}})"
        if numbered:
            inside = ", ".join(made.values())
            return f"nn.{name}({inside})" if name == "Sequential" else f"nn.{name}([{inside}])"
        self.ordered = True
        return f"nn.Sequential(OrderedDict([{', '.join(f'({key!a}, {one})' for key, one in made.items())}]))"

    def _fresh(self, name: str) -> str:
        base = name = _identifier(name, "Model")
        number = 1
        while name in self._names or name in _TAKEN:
            number += 1
            name = f"{base}{number}"
        self._names.add(name)
        return name

    def _body(self, module: Module, *, root: bool) -> Iterator[str]:
        yield "    def __init__(self) -> None:"
        yield "        super().__init__()"
        for line in (*self._own(module), *(self._ties(module) if root else ())):
            yield f"        {line}"
        yield ""
        yield "    def forward(self, x):"
        yield f"        raise {NotImplementedError.__name__}  # no pickle keeps what a class does"

    def _own(self, module: Module) -> Iterator[str]:
        if module.hooks:
            yield f"# had hooks, which are code and stay behind: {', '.join(module.hooks)}"
        for name, value in module.attributes.items():
            yield _attribute(name, value)
        for name, tree in module.parameters.items():
            yield self._register("register_parameter", name, tree, "")
        for name, tree in module.buffers.items():
            yield self._register(
                "register_buffer", name, tree, ", persistent=False" if name in module.transient else ""
            )
        for name, child in module.children.items():
            if child is not None and not isinstance(child, Module):
                yield f"# left out: {name!a}, {ascii(what_is(child))[1:-1]}"
            elif not _is_child(name):
                yield f"# left out: a part with the name {name[:_LONG]!a}"
            else:
                made = "None" if child is None else self.expression(child)
                yield f"self.{name} = {made}" if _is_name(name) and child else f"self.add_module({name!a}, {made})"

    def _register(self, call: str, name: str, tree: Tree, end: str) -> str:
        if tree is None:
            return f"self.{call}({name!a}, None{end})" if _is_child(name) else f"# left out: {name[:_LONG]!a}"
        tensor = tensor_of(tree)
        spec = None if tensor is None else self._spec_of(tensor)
        if spec is None or not _is_child(name):
            return f"# left out: {name[:_LONG]!a}, {ascii(what_is(tree))[1:-1]}"
        made = f"torch.empty({tuple(spec.shape)}, dtype=torch.{spec.dtype})"
        if call == "register_parameter":
            floating = spec.dtype.startswith(("float", "bfloat", "complex"))
            made = f"nn.Parameter({made})" if floating else f"nn.Parameter({made}, requires_grad=False)"
        return f"self.{call}({name!a}, {made}{end})"

    def _ties(self, module: Module) -> Iterator[str]:
        """Tied parameters, once all of them are there."""
        first: dict[int, str] = {}
        parameters = {f"{prefix}{name}" for prefix, part in submodules(module) for name in part.parameters}
        for name, leaf in state_of(module).items():
            known = first.setdefault(id(leaf), name)
            above, _, last = name.rpartition(".")
            if (
                known != name
                and {name, known} <= parameters
                and all(map(_is_child, name.split(".")))
                and _is_name(last)
            ):
                yield f"self.get_submodule({above!a}).{last} = self.get_parameter({known!a})"


def _attribute(name: str, value: Tree) -> str:
    text = _literal(plain_value(value, _UNKNOWN))
    if not text or len(text) > _LONG or not _is_name(name):
        what = f"a {type(value).__name__}" if type(value) in ATOMS else what_is(value)
        return f"# had {name[:_LONG]!a}: {ascii(what)[1:-1][:_LONG]}"
    return f"self.{name} = {text}"


def _literal(value: Any) -> str:
    """A value as Python would read it again; empty for what has no literal."""
    if value is _UNKNOWN:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, tuple | list):
        items = [_literal(item) for item in value]
        if not all(items):
            return ""
        inside = ", ".join(items) + ("," if isinstance(value, tuple) and len(items) == 1 else "")
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return "" if isinstance(value, complex) else ascii(value)


def _is_name(name: str) -> bool:
    """Whether ``self.NAME = ...`` is harmless: a plain identifier, not one that Python gives a meaning to."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


def _is_child(name: str) -> bool:
    """Whether torch takes this as the name of a part."""
    return bool(name) and "." not in name and len(name) <= _LONG


def _identifier(name: str, otherwise: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:60].strip("_")
    if not plain or keyword.iskeyword(plain) or keyword.issoftkeyword(plain):
        return otherwise
    return f"_{plain}" if plain[0].isdigit() else plain
