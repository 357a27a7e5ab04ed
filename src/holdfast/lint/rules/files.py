"""How a checkpoint is written, and what is left when that is stopped."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from holdfast.lint.checkpoints import Save, arguments_for
from holdfast.lint.rule import Found, Seen, rule
from holdfast.lint.script import Script, constant, parameters

_REMOVES = {"os.remove", "os.unlink", "shutil.rmtree"}
_CHECKPOINT = re.compile(r"(?i)ckpt|checkpoint|model|best|weight|last|prev|old|save|\.pth?\b|\.tar\b")
_TEMPORARY = re.compile(r"(?i)te?mp|partial|buffer|stream|bytes|\bbuf\b")
_RANK = re.compile(r"(?i)rank|is_main|is_master|main_process|is_primary|is_chief|zero_only|master")
_TELLS_APART = re.compile(r"time|now|uuid|next|format_name|get_.*path|NamedTemporary")
_MAKES_FOLDERS = {"makedirs", "mkdir"}


@rule("HF009", "saved-in-place")
def saved_in_place(seen: Seen) -> Iterator[Found]:
    """torch.save writes over the file that is there: a kill or a full disk in the middle leaves neither of the two.

    Killed at a random moment while saving over the same path, 19 of 20 files could not be read.
    """
    for save in seen.checkpoints.saves:
        if save.file is None or not _is_repeated(seen.script, save):
            continue
        file = seen.text(save.file)
        if _TEMPORARY.search(file) or seen.script.scope[save.call.node] in seen.checkpoints.moves:
            continue
        yield Found(
            save.call.node,
            f"writes over `{file}` in place: a kill in the middle leaves neither the old checkpoint nor the new one",
            f"holdfast.save({_short(seen, save.obj)}, {file})",
            seen.by_holdfast(save),
        )


def _short(seen: Seen, node: ast.expr) -> str:
    text = seen.text(node)
    return text if len(text) <= 60 else "{...}"


def _is_repeated(script: Script, save: Save) -> bool:
    """Whether the same path is written again and again: in a loop, or in a function that is called in one."""
    path = save.file
    if path is None or _is_stream(script, path):
        return False
    loop = script.loop(save.call.node)
    if loop is not None:
        return _is_fixed(script, path, loop)
    function = script.scope[save.call.node]
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not _is_fixed(script, path, function):
        return False
    calls = [call for call in script.calls_of(function) if script.loop(call.node) is not None]
    given = script.names_in(path) & {one.arg for one in parameters(function)} - {"self"}
    paths = [value for name in sorted(given) for value in arguments_for(script, function, name)]
    same = all((around := script.loop(value)) is None or _is_fixed(script, value, around) for value in paths)
    return bool(calls) and same and (bool(paths) or _has_defaults(function, given))


def _is_fixed(script: Script, path: ast.expr, where: ast.AST, depth: int = 3) -> bool:
    """Whether a path is the same in each round of a loop, or each call of a function."""
    if any(isinstance(one, ast.Call) and _TELLS_APART.search(script.text(one.func)) for one in ast.walk(path)):
        return False
    bound = script.bound_in(where)
    for one in ast.walk(path):
        if isinstance(one, ast.Name) and one.id in bound:
            values = [binding.value for binding in script.values(one)]
            if not depth or not values or None in values:
                return False
            if not all(_is_fixed(script, value, where, depth - 1) for value in values if value is not None):
                return False
    return True


def _has_defaults(function: ast.FunctionDef | ast.AsyncFunctionDef, names: set[str]) -> bool:
    """Whether the path is the same when nobody says another one."""
    positional = [*function.args.posonlyargs, *function.args.args]
    with_default = {one.arg for one in positional[len(positional) - len(function.args.defaults) :]}
    with_default |= {
        one.arg for one, value in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if value
    }
    return names <= with_default


def _is_stream(script: Script, path: ast.expr) -> bool:
    values = [one.value for one in script.values(path)]
    return any(isinstance(v, ast.Call) and re.search(r"BytesIO|open|Temporary", script.text(v.func)) for v in values)


@rule("HF010", "deleted-before-saved")
def deleted_before_saved(seen: Seen) -> Iterator[Found]:
    """The old checkpoint is deleted before the new one is written: a full disk then leaves none at all."""
    script = seen.script
    for suite in script.suites():
        removed: ast.Call | None = None
        for statement in suite:
            calls = [call for call in script.calls_in(statement) if script.scope[call.node] is script.scope[statement]]
            if removed is not None and any(call.name == "torch.save" for call in calls):
                yield Found(
                    removed,
                    "deletes a checkpoint before the next one is saved: a full disk leaves none",
                    'holdfast.Run("runs/a", ..., keep="last:2"), which deletes after the new one is on the disk',
                )
                break
            if any(call.name == "torch.save" for call in calls):
                break
            if removed is None and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                removed = next((call.node for call in calls if _removes(seen, call.node)), None)


def _removes(seen: Seen, call: ast.Call) -> bool:
    removes = seen.script.name(call.func) in _REMOVES or getattr(call.func, "attr", "") == "unlink"
    one_of_several = re.search(r"\[|\.pop", seen.text(call))  # old[0]: others are left
    return removes and not one_of_several and bool(_CHECKPOINT.search(seen.text(call)))


@rule("HF011", "folder-not-made")
def folder_not_made(seen: Seen) -> Iterator[Found]:
    """torch.save makes no folders: where the folder is not there, the first save of a long training raises."""
    script = seen.script
    if any(call.method in _MAKES_FOLDERS for call in script.calls) or "mkdir" in script.source.text:
        return
    for save in seen.checkpoints.saves:
        folder = _folder(script, save.file)
        if folder:
            file = seen.file_of(save)
            yield Found(
                save.call.node,
                f"nothing makes the folder `{folder}`: torch.save raises where it is not there",
                f"holdfast.save({_short(seen, save.obj)}, {file})",
                seen.by_holdfast(save),
            )


def _folder(script: Script, path: ast.expr | None) -> str:
    """The folder that a path of literals begins with; "" for what is absolute or can't be told."""
    values = [one.value for one in script.values(path)] if path is not None else []
    if len(values) == 1:
        path = values[0]
    if isinstance(path, ast.Call) and script.name(path.func) == "os.path.join" and len(path.args) > 1:
        folder = constant(path.args[0]) or ""
        return folder if re.match(r"\w", folder) else ""
    if isinstance(path, ast.JoinedStr) and path.values:
        path = path.values[0]
    text = constant(path) or ""
    return text.rsplit("/", 1)[0] if re.match(r"\w[^:]*/", text) else ""


@rule("HF012", "every-rank-saves")
def every_rank_saves(seen: Seen) -> Iterator[Found]:
    """Every process of the group runs this line, so all of them write the same file at the same time."""
    script = seen.script
    if not any(call.method == "init_process_group" for call in script.calls):
        return
    leaving = _leaving(seen)
    for save in seen.checkpoints.saves:
        if save.file is None or _RANK.search(seen.text(save.file)) or _is_guarded(seen, save.call.node, leaving):
            continue
        model = next((seen.text(one) for other, _, one in seen.checkpoints.states if other is save), "model")
        yield Found(
            save.call.node,
            "every rank runs this: all of them write the same file at the same time",
            f'holdfast.Run("runs/a", model={model}, ...) on every rank: each part is written once, in one commit',
        )


def _is_guarded(seen: Seen, node: ast.AST, leaving: set[ast.AST], depth: int = 3) -> bool:
    """Whether something around the line, or around every call of its function, asks for the rank."""
    script = seen.script
    tests = (one.test for one in script.around(node) if isinstance(one, ast.If | ast.IfExp))
    function = script.scope[node]
    if function in leaving or any(_RANK.search(seen.text(test)) for test in tests):
        return True
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or not depth:
        return False
    if any(_RANK.search(seen.text(one)) for one in function.decorator_list):
        return True
    calls = script.calls_of(function)
    if not calls:
        return function.name != "main"  # who calls it may ask
    return all(_is_guarded(seen, call.node, leaving, depth - 1) for call in calls)


def _leaving(seen: Seen) -> set[ast.AST]:
    """The functions that the other ranks leave: ``if rank != 0: return``."""
    return {
        seen.script.scope[node]
        for node in seen.script.nodes
        if isinstance(node, ast.If)
        and any(isinstance(one, ast.Return | ast.Continue | ast.Raise) for one in node.body)
        and _RANK.search(seen.text(node.test))
    }
