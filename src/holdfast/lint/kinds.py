"""What a name stands for: a module, an optimizer, a scheduler, by how it is made, else by what people call it."""

from __future__ import annotations

import ast
import re
from typing import Literal

from holdfast.lint.script import Script, constant

Kind = Literal["module", "wrapped", "compiled", "quantized", "optimizer", "scheduler", "scaler", "state", "other"]

_MADE_BY: tuple[tuple[str, Kind], ...] = (
    (r"torch\.(nn\.|nn\.parallel\.)(DataParallel|DistributedDataParallel)", "wrapped"),
    (r"torch\.compile", "compiled"),
    (r"torch\.(ao\.)?quantization\.([\w.]+\.)?(quantize_dynamic|convert)", "quantized"),
    (r"torch\.optim\.lr_scheduler\.\w+", "scheduler"),
    (r"torch\.optim\.([\w.]+\.)?[A-Z]\w*", "optimizer"),
    (r"torch\.(cuda\.amp\.|amp\.)GradScaler", "scaler"),
    (r"torch\.nn\.(?!\w*Loss|Parameter|init)([\w.]+\.)?[A-Z]\w*", "module"),
    (r"torchvision\.models\.[\w.]+|timm\.create_model|torch\.hub\.load", "module"),
    (r"(\w+\.)+from_pretrained", "module"),
    (r"torch\.load", "other"),
)
_CALLED: tuple[tuple[str, Kind], ...] = (
    (r"(?i)sched", "scheduler"),
    (r"(?i)optim|^opt(_|$|[A-Z\d])|_opt$", "optimizer"),
    (r"(?i)^(grad_?)?scaler$", "scaler"),
    (r"(?i)^(net|network|model|module|encoder|decoder|generator|discriminator|classifier|backbone)$", "module"),
    (r"(?i)_(model|net)$|^(model|net)_?[a-z\d]{0,2}$", "module"),
)
_SAME = {"to", "cuda", "cpu", "eval", "train", "half", "float", "double", "requires_grad_", "share_memory"}
"""Methods of a module that hand the module back."""


DEPTH = 4
"""How many names are followed from one to the next."""


def kind(script: Script, node: ast.expr | None, depth: int = DEPTH) -> Kind | None:
    """What ``node`` stands for, or None where the script does not tell."""
    if isinstance(node, ast.Call):
        return _made(script, node, depth)
    if not isinstance(node, ast.Name | ast.Attribute) or depth <= 0:
        return None
    name = script.scope[node], script.key(node)
    if depth == DEPTH and name in script.kinds:
        return script.kinds[name]  # type: ignore[return-value]
    found = _named(script, node, depth)
    if depth == DEPTH:
        script.kinds[name] = found
    return found


def _named(script: Script, node: ast.Name | ast.Attribute, depth: int) -> Kind | None:
    """What a name stands for: what it was given, else what it is called."""
    found = {kind(script, one.value, depth - 1) for one in script.values(node) if one.value is not node} - {None}
    for one in ("wrapped", "compiled", "quantized", "state", "other"):  # what it becomes later counts most
        if one in found:
            return one
    if found:
        return found.pop()
    if isinstance(node, ast.Attribute) and node.attr == "module":
        return kind(script, node.value, depth - 1) and "module"
    last = script.key(node).rsplit(".", 1)[-1]
    return next((kind for pattern, kind in _CALLED if re.search(pattern, last)), None)


def _made(script: Script, node: ast.Call, depth: int) -> Kind | None:
    name = script.name(node.func)
    for pattern, made in _MADE_BY:
        if name and re.fullmatch(pattern, name):
            return made
    if is_state(node) or name in ("dict", "collections.OrderedDict", "OrderedDict"):
        return "state"
    if name in script.classes:
        return "module" if is_module_class(script, script.classes[name]) else "other"
    if isinstance(node.func, ast.Attribute) and node.func.attr in _SAME:
        return kind(script, node.func.value, depth - 1)
    return None


def is_module_class(script: Script, node: ast.ClassDef, depth: int = 4) -> bool:
    """Whether a class of the script is a module, also by way of another class of the script."""
    for base in node.bases:
        name = script.name(base)
        if name in ("torch.nn.Module", "torch.nn.Sequential") or name.endswith(("LightningModule", "PreTrainedModel")):
            return True
        if depth and name in script.classes and is_module_class(script, script.classes[name], depth - 1):
            return True
    return False


def is_state(node: ast.AST | None) -> bool:
    """Whether ``node`` is ``X.state_dict()``."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "state_dict"


def owner(node: ast.AST | None) -> ast.expr | None:
    """The X of ``X.state_dict()``, also inside ``dict()``, ``.copy()`` and a comprehension that copies nothing."""
    while isinstance(node, ast.Call) and not is_state(node):
        node = node.func.value if isinstance(node.func, ast.Attribute) else next(iter(node.args), None)
    if is_state(node) and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.value
    return None


def subscript(node: ast.AST | None) -> str | None:
    """The key of ``checkpoint["epoch"]`` or ``checkpoint.get("epoch", 0)``."""
    if isinstance(node, ast.Subscript):
        return constant(node.slice)
    is_get = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop")
    return constant(node.args[0]) if is_get and isinstance(node, ast.Call) and node.args else None
