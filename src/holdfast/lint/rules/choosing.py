"""Which checkpoint is the best, and which the newest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from holdfast.lint.rule import Found, Seen, rule
from holdfast.lint.script import Script

_CHECKPOINT = re.compile(r"(?i)ckpt|checkpoint|epoch|step|\.pth?\b|\.tar\b|\.safetensors")
_TIMES = re.compile(r"getmtime|getctime|st_mtime|st_ctime")
_LISTS = {"glob", "iglob", "rglob", "listdir", "iterdir"}
_PADDED = re.compile(r":0\d+d?\}|zfill|%0\d+d")


@rule("HF013", "best-not-saved")
def best_not_saved(seen: Seen) -> Iterator[Found]:
    """The best metric so far is in no checkpoint, so a restart begins without it: a worse model overwrites the best."""
    script, checkpoints = seen.script, seen.checkpoints
    full = [save for save in checkpoints.saves if len(save.items) > 1]
    if not checkpoints.resumes or not full:
        return
    saved = {name for save in full for item in save.items for name in _keys(script, item.value)}
    saved |= {item.key for save in full for item in save.items}
    told: set[str] = set()
    for node in script.nodes:
        best = _compared(script, node) if isinstance(node, ast.stmt) else ""
        if (
            isinstance(node, ast.stmt)
            and best
            and best not in saved
            and best.removeprefix("self.") not in saved
            and best not in told
        ):
            told.add(best)
            file = seen.file_of(full[0])
            yield Found(
                node,
                f"`{best}` is in no checkpoint: after a restart a worse model overwrites the best",
                f'holdfast.save({{..., "{best.rsplit(".", 1)[-1]}": {best}}}, {file}), or Run(..., best="val_acc:max")',
            )


def _keys(script: Script, node: ast.AST) -> set[str]:
    return {script.key(one) for one in ast.walk(node) if isinstance(one, ast.Name | ast.Attribute)}


def _compared(script: Script, node: ast.AST) -> str:
    """The best of ``if acc > best:`` with ``best = acc`` below it, or of ``best = max(acc, best)``."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and script.loop(node) is not None:
        sides = {script.key(side) for side in (node.test.left, *node.test.comparators)}
        is_order = isinstance(node.test.ops[0], ast.Lt | ast.Gt | ast.LtE | ast.GtE)
        for one in node.body if is_order and "" not in sides else ():
            if isinstance(one, ast.Assign) and {script.key(one.value), script.key(one.targets[0])} == sides:
                return script.key(one.targets[0])
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and script.loop(node) is not None:
        target = script.key(node.targets[0])
        chosen = script.name(node.value.func) in ("max", "min") and target in map(script.key, node.value.args)
        return target if chosen and "best" in target.lower() else ""
    return ""


@rule("HF014", "latest-by-time-or-text")
def latest_by_time_or_text(seen: Seen) -> Iterator[Found]:
    """Files have the time when they were copied, and `epoch_9` comes after `epoch_10` as text.

    Either way a training goes on from a checkpoint that is not its newest, and rolls itself back.
    """
    script = seen.script
    for call in script.calls:
        if call.name not in ("max", "sorted") or not _of_checkpoints(script, call.node):
            continue
        key = call.argument(9, "key")
        if key is not None and _TIMES.search(seen.text(key)):
            why = "takes the file that was written or copied last for the newest checkpoint"
        elif key is None and _is_last(script, call.node) and not _PADDED.search(script.source.text):
            why = "compares names as text: `epoch_9` comes after `epoch_10`"
        else:
            continue
        yield Found(
            call.node, why, 'holdfast.Run("runs/a", ...), which resumes by step, or the reference "runs/a@last"'
        )


def _of_checkpoints(script: Script, node: ast.Call) -> bool:
    """Whether a call chooses among the files of a folder, and these are checkpoints."""
    listed = [*node.args]
    for one in node.args:
        listed += [value for binding in script.values(one) if (value := binding.value) is not None]
    text = " ".join(script.text(one) for one in listed)
    lists = any(call.method in _LISTS for one in listed for call in script.calls_in(one))
    return lists and bool(_CHECKPOINT.search(text))


def _is_last(script: Script, node: ast.Call) -> bool:
    if script.name(node.func) == "max":
        return True
    above = script.parent.get(node)
    return isinstance(above, ast.Subscript) and script.text(above.slice) == "-1"
