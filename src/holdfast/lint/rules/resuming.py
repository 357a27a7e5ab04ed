"""What a training needs to go on as if it had not stopped."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from holdfast.lint.checkpoints import arguments_for, states_of
from holdfast.lint.kinds import is_state, kind, owner, subscript
from holdfast.lint.rule import Found, Seen, rule
from holdfast.lint.script import Call, Script

_PARTS = ("optimizer", "scheduler", "scaler")
_LOOP_POSITION = {"epoch", "start_epoch", "step", "global_step", "iteration"}


@rule("HF015", "part-not-saved")
def part_not_saved(seen: Seen) -> Iterator[Found]:
    """A checkpoint with an epoch is meant to go on from, and one part of the training is not in it.

    The optimizer then begins without its moments, the scheduler at its first rate, the scaler at its first scale.
    """
    script = seen.script
    parts = [(part, name) for part in _PARTS if (name := _made(script, part)) and not states_of(script, part)]
    for save in seen.checkpoints.saves:
        keys = {item.key for item in save.items}
        if not keys & _LOOP_POSITION or not any(is_state(item.value) for item in save.items):
            continue
        for part, name in parts:
            yield Found(
                save.call.node,
                f"the {part} `{name}` is not in the checkpoint: a training that goes on begins with a new one",
                f'holdfast.save({{..., "{part}": {name}}}, {seen.file_of(save)})',
            )


def _made(script: Script, part: str) -> str:
    """The name of the first object of a kind that the script makes itself."""
    for node in script.nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and kind(script, node.value) == part:
            return script.key(node.targets[0])
    return ""


@rule("HF016", "saved-not-restored")
def saved_not_restored(seen: Seen) -> Iterator[Found]:
    """A part is in the file, and resuming forgets it: most often the scheduler.

    Resumed at epoch 10 of 20, OneCycleLR goes on at 0.013 where the uninterrupted training has 0.061.
    """
    checkpoints = seen.checkpoints
    if not checkpoints.resumes:
        return
    told: set[str] = set()
    for save in checkpoints.saves:
        for item in save.items:
            part = owner(item.value) if is_state(item.value) else None
            if part is None or checkpoints.is_restored(item) or item.key in told:
                continue
            told.add(item.key)
            name = seen.text(part)
            yield Found(
                item.value,
                f'"{item.key}" is saved and never restored: `{name}` begins again while the rest goes on',
                f"holdfast.restore(file, {_keywords(seen, save.items)})",
            )


def _keywords(seen: Seen, items: tuple[tuple[str, ast.expr], ...]) -> str:
    """``model=net, scheduler=sched``: what restore is called with."""
    parts = [(key, owner(value)) for key, value in items if is_state(value)]
    return ", ".join(f"{_parameter(key)}={seen.text(part)}" for key, part in parts if part is not None)


def _parameter(key: str) -> str:
    name = key.removesuffix("_state_dict").removesuffix("_state")
    return "model" if name == "state_dict" else name if name.isidentifier() else "part"


@rule("HF017", "epoch-off-by-one")
def epoch_off_by_one(seen: Seen) -> Iterator[Found]:
    """The file has the epoch that is done, and the loop begins with it: one is trained twice, or one is left out."""
    script = seen.script
    for save in seen.checkpoints.saves:
        saved = next((item for item in save.items if item.key in ("epoch", "start_epoch")), None)
        loop = script.loop(save.call.node)
        if saved is None or not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Name):
            continue
        name = loop.target.id
        start = _range_start(script, loop)
        done, read = _more_than(saved.value, name), _read_as(script, start, saved.key) if start is not None else None
        if done is not None and read is not None and done + read != 1:
            what = "trained twice" if done + read < 1 else "left out"
            yield Found(
                saved.value,
                f"a restart begins at the file's `{seen.text(saved.value)}` plus {read}: one epoch is {what}",
                f'"{saved.key}": {name} + {1 - read}, or: for {name} in run.epochs(n)',
            )


def _more_than(node: ast.expr, base: str) -> int | None:
    """The number of ``base + number``, where the base is a name or the key of a dict; 0 for the base alone."""
    if (isinstance(node, ast.Name) and node.id == base) or subscript(node) == base:
        return 0
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.right, ast.Constant):
        more = node.right.value
        return more if isinstance(more, int) and _more_than(node.left, base) == 0 else None
    return None


def _range_start(script: Script, loop: ast.For) -> ast.expr | None:
    call = loop.iter
    is_range = isinstance(call, ast.Call) and script.name(call.func) == "range" and len(call.args) >= 2
    return call.args[0] if is_range and isinstance(call, ast.Call) else None


def _read_as(script: Script, start: ast.expr, key: str) -> int | None:
    """What is added between ``checkpoint["epoch"]`` and the loop's start; None where no checkpoint is read."""
    more, base = 0, start
    if isinstance(start, ast.BinOp) and isinstance(start.left, ast.Name):
        more, base = _more_than(start, start.left.id) or 0, start.left
    for value in (start, *_given(script, base)):
        read = _more_than(value, key)
        if read is not None and subscript(value.left if isinstance(value, ast.BinOp) else value) == key:
            return read if value is start else read + more
    return None


def _given(script: Script, name: ast.expr) -> Iterator[ast.expr]:
    """The values of a name; of a parameter, what the script's own calls give for it."""
    scope = script.scope[name]
    if isinstance(name, ast.Name) and not script.values(name) and script.is_parameter(scope, name.id):
        for argument in arguments_for(script, scope, name.id):
            yield from (one.value for one in script.values(argument) if one.value is not None)
    yield from (one.value for one in script.values(name) if one.value is not None)


@rule("HF018", "rng-not-saved")
def rng_not_saved(seen: Seen) -> Iterator[Found]:
    """A shuffled loader goes on with the first epoch's order, and dropout with the first masks.

    The random state is in no checkpoint, so what was seen before the stop is seen again in the same order.
    """
    script, checkpoints = seen.script, seen.checkpoints
    loaders = [call for call in script.calls if call.method == "DataLoader" and _is_true(call.argument(9, "shuffle"))]
    if not checkpoints.resumes or not loaders or "rng_state" in script.source.text:
        return
    for save in checkpoints.saves:
        if any(item.key in _LOOP_POSITION for item in save.items):
            statement = script.statement(loaders[0].node)
            loader = script.key(statement.targets[0]) if isinstance(statement, ast.Assign) else "loader"
            yield Found(
                save.call.node,
                "the random state is not in the checkpoint: a restart shuffles as the first epoch did",
                f'holdfast.Run("runs/a", {_keywords(seen, save.items)}, loader={loader})',
            )
            return


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@rule("HF019", "scheduler-after-load")
def scheduler_after_load(seen: Seen) -> Iterator[Found]:
    """Making a scheduler sets the optimizer's learning rate, also the one that was just loaded.

    Of nine schedulers of torch, five then go on with a wrong learning rate.
    """
    script = seen.script
    loaded: dict[tuple[ast.AST, str], list[int]] = defaultdict(list)
    for one in seen.checkpoints.restored:
        if kind(script, one.owner) == "optimizer":
            loaded[script.scope[one.call.node], script.key(one.owner)].append(one.call.node.lineno)
    for call in script.calls:
        optimizer = call.argument(0, "optimizer")
        if optimizer is None or kind(script, call.node) != "scheduler" or call.argument(9, "last_epoch"):
            continue
        at, name = call.node.lineno, script.key(optimizer)
        line = max((one for one in loaded[script.scope[call.node], name] if one < at), default=0)
        made = [b.node.lineno for b in script.values(optimizer) if isinstance(b.node, ast.stmt)]
        if line and not any(line < one <= at for one in made):
            yield Found(
                call.node,
                f"made after `{name}` was loaded (line {line}): it sets the loaded rate back",
                f"make it first, then holdfast.restore(file, optimizer={name}, scheduler=scheduler)",
            )


@rule("HF020", "workers-draw-the-same")
def workers_draw_the_same(seen: Seen) -> Iterator[Found]:
    """A generator that the dataset makes for itself is copied into each worker, and all of them draw the same numbers.

    torch seeds its own generator, Python's and numpy's global ones for each worker, and no other.
    """
    script = seen.script
    if not any(_has_workers(call) for call in script.calls if call.method == "DataLoader"):
        return
    for node in script.classes.values():
        methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
        if "__init__" not in methods or "__getitem__" not in methods:
            continue
        used = {script.key(n) for n in ast.walk(methods["__getitem__"]) if isinstance(n, ast.Attribute)}
        for one in ast.walk(methods["__init__"]):
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call):
                name, target = script.name(one.value.func), script.key(one.targets[0])
                is_generator = name in ("numpy.random.default_rng", "numpy.random.RandomState", "random.Random")
                if is_generator and target in used:
                    yield Found(
                        one.value,
                        f"each worker gets a copy of `{target}`, and all of them draw the same numbers",
                        "torch.rand(1) in __getitem__: torch seeds its own generator anew in each worker",
                    )


def _has_workers(call: Call) -> bool:
    workers = call.argument(9, "num_workers")
    none = isinstance(workers, ast.Constant) and not workers.value
    return workers is not None and not none and call.argument(9, "worker_init_fn") is None
