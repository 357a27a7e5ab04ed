"""What is in a checkpoint, and is not what it was meant to be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from holdfast.lint.kinds import is_state, kind, owner
from holdfast.lint.rule import Found, Seen, rule
from holdfast.lint.script import Script

_BEST = re.compile(r"(?i)best")
_KEPT = re.compile(r"(?i)snapshot|backup|initial|init_|original|previous|prev_")
_COPIES = {"deepcopy", "clone", "numpy", "cpu", "to", "snapshot"}


@rule("HF001", "aliased-state")
def aliased_state(seen: Seen) -> Iterator[Found]:
    """`state_dict()` hands out the live tensors, and `.copy()` or `dict()` copy the names alone.

    The optimizer goes on writing into them, so the best is the last, bit for bit.
    """
    script = seen.script
    trains = any(call.method == "backward" for call in script.calls)
    for name, bindings in script.everywhere.items():
        if _BEST.search(name) or (trains and _KEPT.search(name)):
            for one in bindings:
                source = _alias(script, one.value) if isinstance(one.node, ast.Assign) and one.value else None
                if source is not None and one.value is not None and not _saved_next(script, one.node, name):
                    yield _aliased(seen, one.value, source, f"`{name}`", f"{name} = ")
    for call in script.calls_by["append"]:
        state = call.argument(0, "object")
        source = _alias(script, state) if is_state(_innermost(state)) and script.loop(call.node) is not None else None
        if source is not None and state is not None and call.receiver is not None:
            name = seen.text(call.receiver)
            yield _aliased(seen, state, source, f"each item of `{name}`", f"{name}.append(", ")")


def _aliased(seen: Seen, value: ast.expr, source: ast.expr, what: str, *around: str) -> Found:
    model = seen.text(source)
    copy = f"holdfast.snapshot({model})"
    so = ", so the best is the last" if _BEST.search(what) else ""
    return Found(
        value,
        f"{what} holds the live tensors of `{model}`: later steps change it too{so}",
        copy.join([*around, ""][:2]),
        seen.replaced(value, copy),
    )


def _alias(script: Script, value: ast.expr | None) -> ast.expr | None:
    """The object whose live tensors ``value`` hands out: by state_dict(), or the module itself."""
    if value is None or any(call.method in _COPIES for call in script.calls_in(value)):
        return None
    inner, loop = _innermost(value), script.loop(value)
    source = owner(inner) if is_state(inner) else value
    if loop is not None and script.key(source).split(".")[0] in script.bound_in(loop):
        return None  # each round has a model of its own
    is_name = isinstance(value, ast.Name | ast.Attribute)
    return source if is_state(inner) or (is_name and kind(script, value) == "module" and loop is not None) else None


def _innermost(value: ast.expr | None) -> ast.expr | None:
    """``X.state_dict()`` out of what copies only its names."""
    while value is not None and not is_state(value):
        if isinstance(value, ast.Call):
            name = getattr(value.func, "attr", getattr(value.func, "id", ""))
            if isinstance(value.func, ast.Attribute) and name in ("copy", "items") and not value.args:
                value = value.func.value
            else:
                value = value.args[0] if name in ("dict", "OrderedDict", "copy") and len(value.args) == 1 else None
        elif isinstance(value, ast.Dict) and value.keys == [None]:
            value = value.values[0]
        elif isinstance(value, ast.DictComp) and _keeps_all(value):
            value = value.generators[0].iter
        else:
            value = None
    return value


def _keeps_all(node: ast.DictComp) -> bool:
    """``{k: v for k, v in ...}``, or with ``v.detach()`` or ``v.data``: the same tensors under the same names."""
    value = node.value.func if isinstance(node.value, ast.Call) and not node.value.args else node.value
    if isinstance(value, ast.Attribute) and value.attr in ("detach", "data"):
        value = value.value
    return isinstance(node.key, ast.Name) and isinstance(value, ast.Name) and not node.generators[0].ifs


def _saved_next(script: Script, node: ast.AST, name: str) -> bool:
    """Whether the state goes to a file in the next statement, before anything can change it."""
    after = script.following.get(node)
    return after is not None and any(
        call.method in ("save", "load_state_dict") and any(script.key(one) == name for one in call.node.args)
        for call in script.calls_in(after)
    )


@rule("HF002", "whole-module-saved")
def whole_module_saved(seen: Seen) -> Iterator[Found]:
    """`torch.save(model)` pickles the name of the class, not the class.

    torch.load refuses the file since 2.6. With weights_only=False it needs the class under the same name, and when the
    class was changed it loads without a word and fails at use.
    """
    for save in seen.checkpoints.saves:
        whole = [("", save.obj), *save.items]
        for key, value in whole:
            if kind(seen.script, value) in ("module", "wrapped", "compiled") and not owner(value):
                name, file = seen.text(value), seen.file_of(save)
                what = f'{{"{key}": {name}, ...}}' if key else name
                yield Found(
                    value,
                    f"pickles the whole `{name}`: torch.load refuses that since 2.6, and it breaks if the class moves",
                    f"holdfast.save({what}, {file})",
                    seen.by_holdfast(save),
                )


@rule("HF003", "types-refused")
def types_refused(seen: Seen) -> Iterator[Found]:
    """A Namespace, a numpy number or a Path in the checkpoint makes torch.load refuse all of it.

    It is saved without a word. Since 2.6 torch.load reads tensors and plain values alone, unless it may run code.
    """
    for save in seen.checkpoints.saves:
        for key, value in save.items:
            what = _foreign(seen.script, value)
            if what:
                yield Found(
                    value,
                    f'"{key}" is {what}: torch.load refuses the whole file with an UnpicklingError',
                    _with(seen, save.call.node),
                    seen.by_holdfast(save),
                )


def _with(seen: Seen, save: ast.Call) -> str:
    arguments = ", ".join(seen.text(one) for one in save.args)
    if len(arguments) > 60:
        arguments = f"{{...}}, {seen.text(save.args[1])}" if len(save.args) > 1 else "..."
    return f"holdfast.save({arguments})"


def _foreign(script: Script, value: ast.expr) -> str:
    """What torch.load refuses about a value, by how it was made."""
    calls: list[ast.expr | None] = [one.value for one in script.values(value)] or [value]
    found = {_made(script, call) for call in calls if isinstance(call, ast.Call)}
    return found.pop() if len(found) == 1 and len(calls) == 1 else ""


def _made(script: Script, call: ast.Call) -> str:
    name = script.name(call.func)
    if getattr(call.func, "attr", "") == "parse_args" or name == "argparse.Namespace":
        return "an argparse.Namespace"
    if re.fullmatch(r"numpy\.(mean|sum|max|min|median|std|var|array|asarray|float64|float32|int64|average)", name):
        return "a numpy value"
    return "a Path" if name in ("pathlib.Path", "Path") else ""


@rule("HF004", "loss-with-graph")
def loss_with_graph(seen: Seen) -> Iterator[Found]:
    """A loss that is still a tensor of the graph goes into the checkpoint as a tensor.

    It comes back as a leaf that requires grad, on the GPU if it was there, where a number was meant.
    """
    script = seen.script
    backward = {script.key(call.receiver) for call in script.calls if call.method == "backward"}
    for save in seen.checkpoints.saves:
        for key, value in save.items:
            name = script.key(value)
            if isinstance(value, ast.Name) and name in backward and _is_called(script, value):
                yield Found(
                    value,
                    f'"{key}" is the loss tensor: it comes back as a leaf with requires_grad=True, not as a number',
                    f'"{key}": {name}.item()',
                    seen.replaced(value, f"{name}.item()", None),
                )


def _is_called(script: Script, name: ast.Name) -> bool:
    """Whether every value of a name is a call that gives a tensor: no float(), no .item()."""
    plain = {"item", "float", "detach", "tolist", "round", "int"}
    values = [one.value for one in script.values(name)]
    return bool(values) and all(isinstance(v, ast.Call) and script.call(v).method not in plain for v in values)


@rule("HF005", "wrapped-names")
def wrapped_names(seen: Seen) -> Iterator[Found]:
    """DataParallel, DDP and torch.compile put a word before every name, and a plain model then misses every key."""
    for save, value, model in seen.checkpoints.states:
        wrapper = kind(seen.script, model)
        if wrapper not in ("wrapped", "compiled") or _unwraps(seen, value, model):
            continue
        name, file = seen.text(model), seen.file_of(save)
        prefix = "module." if wrapper == "wrapped" else "_orig_mod."
        whole = value is save.obj
        yield Found(
            value,
            f"`{name}` is wrapped: the names in the file begin with `{prefix}`, and a plain model misses every key",
            f"holdfast.save({name}, {file})" if whole else f'holdfast.save({{"model": {name}, ...}}, {file})',
            seen.replaced(save.call.node, f"holdfast.save({name}, {file})")
            if whole and seen.by_holdfast(save)
            else None,
        )


def _unwraps(seen: Seen, value: ast.AST, model: ast.expr) -> bool:
    """Whether the same function also takes the model out of its wrapper: then it knows."""
    return (seen.script.scope[value], seen.script.key(model)) in seen.checkpoints.unwrapped


@rule("HF006", "metadata-dropped")
def metadata_dropped(seen: Seen) -> Iterator[Found]:
    """A dict that is made out of a state_dict loses its `_metadata`, where modules keep the version of their format.

    A module that migrates old names then takes the new file for a file of version 0.
    """
    for save in seen.checkpoints.saves:
        for value in (save.obj, *(item.value for item in save.items)):
            part = value.generators[0] if isinstance(value, ast.DictComp) else None
            items = part.iter.func if part is not None and isinstance(part.iter, ast.Call) else None
            model = owner(items.value) if isinstance(items, ast.Attribute) else None
            same = (
                isinstance(value, ast.DictComp)
                and isinstance(value.key, ast.Name)
                and part is not None
                and not part.ifs
            )
            if model is not None and same:
                yield Found(
                    value,
                    "the new dict has no `_metadata`: modules that migrate old names take it for one of version 0",
                    f"holdfast.save({seen.text(model)}, {seen.file_of(save)})",
                )


@rule("HF007", "quantized-state")
def quantized_state(seen: Seen) -> Iterator[Found]:
    """A quantized state_dict fits no float model, and the file does not say that it is quantized.

    Loading it raises; with strict=False the quantized layers stay random, without an error.
    """
    script = seen.script
    if any(kind(script, one.owner) == "quantized" for one in seen.checkpoints.restored):
        return  # it is loaded into a quantized model, which is right
    for save, value, model in seen.checkpoints.states:
        if kind(script, model) == "quantized":
            name, file = seen.text(model), seen.file_of(save)
            yield Found(
                value,
                f"the state of the quantized `{name}` fits no float model; strict=False leaves its layers random",
                f"holdfast.save({name}, {file}), later holdfast.build({file}, factory=Net)",
            )


@rule("HF008", "traced-in-training")
def traced_in_training(seen: Seen) -> Iterator[Found]:
    """A model that is traced or scripted in train mode keeps its dropout alive in the file: two calls differ."""
    script = seen.script
    quiet = {script.key(call.receiver) for call in script.calls if call.method == "eval"}
    for call in script.calls:
        model = call.argument(0, "obj" if call.method == "script" else "func")
        if call.name not in ("torch.jit.trace", "torch.jit.script") or kind(script, model) != "module" or model is None:
            continue
        example = call.argument(1, "example_inputs")
        made = [one.value for one in script.values(model)]
        calm = any(isinstance(v, ast.Call) and script.call(v).method in ("eval", "build") for v in made)
        if script.key(model) and script.key(model) not in quiet and not calm:
            name = seen.text(model)
            yield Found(
                call.node,
                f"`{name}` was not put into eval mode: dropout stays alive in the file, and two calls differ",
                f'holdfast.export({name}, "model.ts", example={seen.text(example) if example is not None else "x"})',
            )
