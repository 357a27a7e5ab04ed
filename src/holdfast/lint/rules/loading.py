"""What a file does to a program that loads it, and what a model is like afterwards."""

from __future__ import annotations

import ast
import bisect
import itertools
import re
from collections.abc import Iterator

from holdfast.lint.kinds import is_state, kind
from holdfast.lint.rule import Edit, Found, Seen, rule
from holdfast.lint.script import Call, Script, constant

_AS_MODULE = {"eval", "train", "parameters", "named_parameters", "cuda", "state_dict"}
_PREFIX = re.compile(r"(\w+\.)*(module|_orig_mod|model|backbone|encoder|net)\.")


@rule("HF021", "file-runs-code")
def file_runs_code(seen: Seen) -> Iterator[Found]:
    """With `weights_only=False` torch.load runs whatever the file says; a file from elsewhere can do anything."""
    for call in seen.checkpoints.loads:
        flag = call.argument(9, "weights_only")
        if isinstance(flag, ast.Constant) and flag.value is False:
            file = _file(seen, call)
            line = f"holdfast.load({file}), or holdfast.restore({file}, model=...)"
            if _used_as_module(seen.script, call):
                line = f"holdfast.build({file}, factory=Net)"
            yield Found(call.node, "runs whatever code is in the file", line)


@rule("HF022", "whole-module-loaded")
def whole_module_loaded(seen: Seen) -> Iterator[Found]:
    """torch.load refuses a pickled module since 2.6, where `weights_only=True` became the default."""
    for call in seen.checkpoints.loads:
        if call.argument(9, "weights_only") is None and _used_as_module(seen.script, call):
            yield Found(
                call.node,
                "raises UnpicklingError: torch.load gives no whole modules any more",
                f"holdfast.build({_file(seen, call)}, factory=Net)",
            )


def _file(seen: Seen, call: Call) -> str:
    file = call.argument(0, "f")
    return seen.text(file) if file is not None else "file"


def _used_as_module(script: Script, call: Call) -> bool:
    """Whether the value of torch.load is called, or put into eval mode, before its name gets another value."""
    above = script.parent.get(call.node)
    if isinstance(above, ast.Attribute):
        return above.attr in _AS_MODULE - {"state_dict"}
    if not isinstance(above, ast.Assign) or len(above.targets) != 1:
        return False
    name, scope = script.key(above.targets[0]), script.scope[call.node]
    others = [b.node.lineno for b in script.values(above.targets[0]) if isinstance(b.node, ast.stmt)]
    end = min((line for line in others if line > above.lineno), default=1 << 60)
    uses = [
        *_between(script.calls_by[f"{name}."], above.lineno, end),
        *_between(script.calls_by[name], above.lineno, end),
    ]
    return bool(name) and any(
        script.scope[use.node] is scope and (script.key(use.node.func) == name or use.method in _AS_MODULE)
        for use in uses
    )


def _between(calls: list[Call], first: int, end: int) -> list[Call]:
    """The calls, in the order of their lines, that stand after one line and before another."""
    start = bisect.bisect_right(calls, first, key=lambda call: call.node.lineno)
    return calls[start : bisect.bisect_left(calls, end, key=lambda call: call.node.lineno)]


@rule("HF023", "no-map-location")
def no_map_location(seen: Seen) -> Iterator[Found]:
    """Without `map_location` a tensor goes back to the device that it was saved from.

    That raises on a machine without the device, and lets every rank of a group fill the memory of the first GPU.
    """
    if not re.search(r"\bcuda\b", seen.script.source.text):
        return
    for call in seen.checkpoints.loads:
        if _used_as_module(seen.script, call):
            continue  # build is the answer there
        hidden = any(one.arg is None for one in call.node.keywords)  # **options may have it
        if call.argument(1, "map_location") is None and call.node.args and not hidden:
            file = call.node.args[0]
            end = seen.script.offset(file.end_lineno or file.lineno, file.end_col_offset or 0)
            yield Found(
                call.node,
                "goes to the device that the file was saved from, and raises where that is not there",
                f"holdfast.restore({seen.text(file)}, model=...): every tensor stays on the model's device",
                Edit(end, end, ', map_location="cpu"', None),
            )


@rule("HF024", "strict-false-unseen")
def strict_false_unseen(seen: Seen) -> Iterator[Found]:
    """`load_state_dict(strict=False)` that matches no name at all loads nothing and says nothing.

    What it returns has the names; without it nobody knows. On another shape it raises all the same.
    """
    for one in seen.checkpoints.restored:
        strict = one.call.argument(1, "strict")
        is_off = isinstance(strict, ast.Constant) and strict.value is False
        statement = seen.script.parent.get(one.call.node)
        if is_off and isinstance(statement, ast.Expr) and one.state is not None:
            name, state = seen.text(one.owner), _source(seen, one.state)
            line = f"holdfast.restore({state}, model={name}, match=holdfast.Warm())"
            yield Found(
                one.call.node,
                "loads nothing when no name matches, and says nothing: what it returns is thrown away",
                f"report = {line}",
                seen.replaced(one.call.node, f"print({line})") if len(one.call.node.keywords) <= 1 else None,
            )


def _source(seen: Seen, state: ast.expr) -> str:
    """What restore takes for a state: the file, where the state is torch.load of it."""
    if isinstance(state, ast.Call) and seen.script.name(state.func) == "torch.load" and state.args:
        return seen.text(state.args[0])
    return seen.text(state)


@rule("HF025", "names-filtered")
def names_filtered(seen: Seen) -> Iterator[Found]:
    """`{k: v for k, v in state.items() if k in own}` is empty when names differ in a prefix, and nobody hears of it."""
    script = seen.script
    for node in script.nodes:
        if not isinstance(node, ast.DictComp) or not _is_filter(script, node):
            continue
        statement = script.statement(node)
        name = script.key(statement.targets[0]) if isinstance(statement, ast.Assign) else ""
        if name and _is_looked_at(script, name):
            continue
        models = [seen.text(one.owner) for one in seen.checkpoints.restored if kind(script, one.owner) != "optimizer"]
        if models:
            source = script.text(node.generators[0].iter).removesuffix(".items()")
            yield Found(
                node,
                "keeps nothing when the names differ in a prefix, and nothing is said",
                f"report = holdfast.restore({source}, model={models[0]}, match=holdfast.Warm())",
            )


def _is_looked_at(script: Script, name: str) -> bool:
    """Whether the names that were kept are used for anything but loading: then somebody sees how many there are."""
    for node in script.read.get(name, ()):
        call = script.parent[node]
        loads = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and node in call.args
        if not loads or call.func.attr not in ("update", "load_state_dict"):  # type: ignore[attr-defined]
            return True
    return False


def _is_filter(script: Script, node: ast.DictComp) -> bool:
    """``if k in own``, where own is a state_dict or a name that looks like one."""
    one = node.generators[0]
    key = one.target.elts[0] if isinstance(one.target, ast.Tuple) and len(one.target.elts) == 2 else None
    if key is None or not script.text(one.iter).endswith(".items()"):
        return False
    tests = [test for part in one.ifs for test in (part.values if isinstance(part, ast.BoolOp) else [part])]
    return any(
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.In)
        and script.key(test.left) == script.key(key)
        and _is_own(script, test.comparators[0])
        for test in tests
    )


def _is_own(script: Script, node: ast.expr) -> bool:
    values = [one.value for one in script.values(node)]
    return is_state(node) or any(is_state(value) for value in values)


@rule("HF026", "prefix-replaced")
def prefix_replaced(seen: Seen) -> Iterator[Found]:
    """`replace("module.", "")` takes the text out wherever it stands: `submodule.weight` becomes `subweight`."""
    script = seen.script
    if not re.search(r"state_dict|torch\.load", script.source.text):
        return
    for call in script.calls:
        if call.method != "replace" or len(call.node.args) < 2 or constant(call.node.args[1]) != "":
            continue
        prefix, receiver = constant(call.node.args[0]), call.receiver
        if prefix and receiver is not None and _PREFIX.fullmatch(prefix) and not _asked_first(seen, call, prefix):
            name = seen.text(receiver)
            text = f'{name}.removeprefix("{prefix}")'
            yield Found(
                call.node,
                f'takes "{prefix}" out of the middle of names too: `sub{prefix}weight` becomes `subweight`',
                f"{text}; or nothing: holdfast.restore knows such prefixes",
                seen.replaced(call.node, text, None),
            )


def _asked_first(seen: Seen, call: Call, prefix: str) -> bool:
    """Whether only the first one is replaced, in a name that was seen to begin with it."""
    if len(call.node.args) < 3:
        return False
    tests: list[ast.expr] = []
    for one in seen.script.around(call.node):
        if isinstance(one, ast.If | ast.IfExp):
            tests.append(one.test)
        elif isinstance(one, ast.DictComp | ast.ListComp | ast.GeneratorExp):
            tests += [test for part in one.generators for test in part.ifs]
    asked = (c for test in tests for c in seen.script.calls_in(test) if c.method == "startswith" and c.node.args)
    return any(constant(c.node.args[0]) == prefix for c in asked)


@rule("HF027", "half-loaded")
def half_loaded(seen: Seen) -> Iterator[Found]:
    """`load_state_dict` that raises has already written what fits: the model is half the old and half the new.

    Who catches the error and goes on trains or predicts with that.
    """
    script = seen.script
    for node in script.nodes:
        if not isinstance(node, ast.Try):
            continue
        inside = {id(one) for part in node.body for one in ast.walk(part)}
        loads = [one for one in seen.checkpoints.restored if id(one.call.node) in inside]
        models = [one for one in loads if kind(script, one.owner) not in ("optimizer", "scheduler", "scaler")]
        if models and any(_goes_on(script, handler) for handler in node.handlers):
            name = seen.text(models[0].owner)
            state = seen.text(models[0].state) if models[0].state is not None else "file"
            yield Found(
                models[0].call.node,
                f"when it raises, `{name}` is half overwritten already, and the program goes on with that",
                f"holdfast.restore({state}, model={name}), which changes nothing when it refuses",
            )


def _goes_on(script: Script, handler: ast.ExceptHandler) -> bool:
    """Whether an error of load_state_dict is caught here and the program goes on."""
    caught = script.text(handler.type) if handler.type is not None else "Exception"
    leaves = any(isinstance(one, ast.Raise | ast.Return | ast.Continue | ast.Break) for one in ast.walk(handler))
    ends = any(call.method in ("exit", "_exit", "quit", "abort") for call in script.calls_in(handler))
    return bool(re.search(r"\b(RuntimeError|Exception|BaseException)\b", caught)) and not leaves and not ends


@rule("HF028", "eval-then-train")
def eval_then_train(seen: Seen) -> Iterator[Found]:
    """`model.eval()` with `model.train()` right below it, as tutorials print them, leaves the model in train mode."""
    script = seen.script
    for suite in script.suites():
        for first, second in itertools.pairwise(suite):
            model = _mode(script, first, "eval")
            if model and model == _mode(script, second, "train"):
                yield Found(
                    second,
                    f"`{model}` is left in train mode: of eval() and train() the last one counts",
                    f'holdfast.restore(file, model={model}, mode="eval"), or mode="train" to go on training',
                )


def _mode(script: Script, node: ast.stmt, mode: str) -> str:
    """The model of ``model.eval()``."""
    call = node.value if isinstance(node, ast.Expr) else None
    method = call.func if isinstance(call, ast.Call) else None
    return script.key(method.value) if isinstance(method, ast.Attribute) and method.attr == mode else ""


@rule("HF029", "eval-forgotten")
def eval_forgotten(seen: Seen) -> Iterator[Found]:
    """A model that was loaded to predict is still in train mode: dropout drops, batch norm takes the batch's own."""
    script = seen.script
    methods = {call.method for call in script.calls}
    if methods & {"eval", "backward", "train", "step", "fit", "compile"}:
        return
    for one in seen.checkpoints.restored:
        model = script.key(one.owner)
        uses = [c for c in script.calls_by[model] if c.receiver is None and c.node.lineno > one.call.node.lineno]
        statement = script.parent.get(one.call.node)
        if model and uses and kind(script, one.owner) == "module" and isinstance(statement, ast.Expr):
            start = script.offset(statement.lineno, 0)
            indent = script.source.text[start : script.offset(statement.lineno, statement.col_offset)]
            end = script.offset(statement.end_lineno or statement.lineno, statement.end_col_offset or 0)
            alone = not indent.strip()
            yield Found(
                one.call.node,
                f"`{model}` predicts in train mode: dropout and batch norm are not what they are in inference",
                f'holdfast.restore(file, model={model}, mode="eval")',
                Edit(end, end, f"\n{indent}{model}.eval()" if alone else f"; {model}.eval()", None),
            )
