"""What a restore will do with an optimizer: its state follows the parameters' names, not their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import CorruptFile, MismatchError
from holdfast.formats.base import StoredTensor
from holdfast.objects.optimizer import OptimizerPart
from holdfast.policy.names import align, policy_names, without_wrappers
from holdfast.policy.policies import Policy, Warm
from holdfast.policy.report import LoadReport
from holdfast.serialization.lowering import lower_state
from holdfast.serialization.sharded import is_sharded
from holdfast.state.flatten import child, keys
from holdfast.state.values import Tree, Typed
from holdfast.transfer.plan import ObjectPlan

_LIKE_PARAMETER = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum", "square_avg"}
    | {"acc_delta", "grad_avg", "prev", "ax"}
)
"""State of torch's optimizers that has the parameter's shape; other state (Adafactor's rows) has its own."""
_SMALL = 4096
"""Bytes below which a new state tensor is simply read beforehand (step counters)."""


def plan_optimizer(
    name: str, part: OptimizerPart, tree: Tree, record: Mapping[str, Any], policy: Policy, file: str
) -> ObjectPlan:
    """Decides for an optimizer.

    Args:
        name: as the caller calls it.
        part: its adapter.
        tree: its state in the file.
        record: what the file recorded beside it: ``param_names``.
        policy: what may differ; a Warm start also lets parameters be added and left out.
        file: named in errors.

    Raises:
        MismatchError: parameters differ, or state of another shape than its parameter; nothing was changed.
        CorruptFile: no state of an optimizer.
    """
    groups, order = _groups(tree, name, file)
    report = LoadReport()
    stored, live = _stored_names(record, groups) or _names_as_keys(order), part.param_names()
    if not stored or live is None or len(stored) != len(order):
        _check_groups(name, part, [len(child(group, "params") or []) for group in groups], file)
        known = "the file has no parameter names" if not stored else "give model= beside it"
        report.notes.append(f"matched by position: {known}")
        places = dict(zip(order, range(len(order)), strict=True))
    else:
        found = _by_name(stored, live, policy, name, file, report)
        places = {order[old]: new for old, new in found.items()}
    # torch.distributed.checkpoint keeps numbers that are keys as text
    places |= {str(key): place for key, place in places.items() if str(key) not in places}
    moved = _moved(tree, groups, places, part, report)
    reads = _reads(name, part, moved, file, report)
    report.loaded.append("param_groups")
    return ObjectPlan(name, part, report, reads=reads, assign=moved, policy=policy)


def _groups(tree: Tree, name: str, file: str) -> tuple[list[Tree], list[int | str]]:
    """The param_groups and the keys of all their parameters, in order."""
    groups: Tree = child(tree, "param_groups")
    lists = [child(group, "params") for group in groups] if isinstance(groups, list) else [None]
    if all(isinstance(one, list) for one in lists):
        order = [key for one in lists for key in one or []]
        if all(type(key) in (int, str) for key in order) and len(set(order)) == len(order):
            return groups, order
    raise CorruptFile(f"`{file}`: `{name}`: its param_groups are no list of groups with params", file=file, path=name)


def _stored_names(record: Mapping[str, Any], groups: Sequence[Tree]) -> list[str]:
    """The parameters' names that the file has: our own record, else torch's in its groups; [] where it has none."""
    listed = [child(group, "param_names") for group in groups]
    if not isinstance(names := record.get("param_names"), list):
        names = [name for part in listed if isinstance(part, list) for name in part]
    return [str(name) for name in names]


def _names_as_keys(order: Sequence[int | str]) -> list[str]:
    """The keys of the parameters where they are names, as torch's ``get_state_dict`` makes them; else []."""
    names = [key for key in order if type(key) is str and not key.isdecimal()]
    return names if len(names) == len(order) else []


def _check_groups(name: str, part: OptimizerPart, sizes: list[int], file: str) -> None:
    live = part.group_sizes()
    if sizes != live:
        raise MismatchError(
            f"`{file}`: `{name}`: the file's optimizer has {sum(sizes)} parameters in groups of {sizes}, the program's "
            f"has {sum(live)} in groups of {live}; nothing was changed. Build it over the same parameters, or give "
            "model= beside it so that they are matched by name",
            file=file,
            path=name,
        )


def _by_name(
    stored: Sequence[str], live: Sequence[str], policy: Policy, name: str, file: str, report: LoadReport
) -> dict[int, int]:
    """Position in the file -> position in the program."""
    names = policy_names(stored, policy)
    aligned = align(names.values(), live)
    if len(aligned) < min(len(stored), len(live)):  # beside other models it is ``G.fc.weight``, alone ``fc.weight``
        aligned |= _by_suffix([new for new in names.values() if new not in aligned], live, set(aligned.values()))
    at = {one: index for index, one in enumerate(live)}
    found = {index: at[aligned[names[old]]] for index, old in enumerate(stored) if names.get(old) in aligned}
    missing = [one for one in live if at[one] not in set(found.values())]
    unexpected = [old for index, old in enumerate(stored) if index not in found]
    report.missing += [f"state.{one}" for one in missing]
    report.unexpected += [f"state.{one}" for one in unexpected]
    if (missing or unexpected) and not isinstance(policy, Warm):
        lacks = f"the file has no state for {_some(missing)}" if missing else f"the program lacks {_some(unexpected)}"
        raise MismatchError(
            f"`{file}`: `{name}`: {lacks}; nothing was changed. Build the optimizer over the same parameters, or allow "
            "it with match=holdfast.Warm()",
            file=file,
            path=name,
        )
    if any(old != new for old, new in found.items()):
        report.notes.append("its parameters stand in another order than in the file: matched by name")
    return found


def _by_suffix(stored: Sequence[str], live: Sequence[str], taken: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for old in stored:
        core = without_wrappers(old)
        near = [new for new in live if new not in taken and (core.endswith(f".{new}") or new.endswith(f".{core}"))]
        if len(near) == 1:
            found[old] = near[0]
    return found if len(set(found.values())) == len(found) else {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"`{one}`" for one in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _moved(
    tree: Tree, groups: Sequence[Tree], places: Mapping[int | str, int], part: OptimizerPart, report: LoadReport
) -> Tree:
    """The file's state under the program's positions, in the program's groups."""
    state = child(tree, "state")
    by_place = [[places[index], child(state, index)] for index in keys(state) if index in places]
    home = {places[index]: group for group in groups for index in child(group, "params") or [] if index in places}
    live = lower_state(part.obj.state_dict()["param_groups"], row_major=False).tree
    moved: list[Any] = []
    for number, own in enumerate(live):
        sources = {id(home[index]): home[index] for index in own["params"] if index in home}
        if len(sources) > 1:
            report.notes.append(
                f"group {number}: its parameters come from {len(sources)} groups of the file: it keeps its own options"
            )
        if len(sources) != 1:
            moved.append(own)
            continue
        (source,) = sources.values()
        options = {key: child(source, key) for key in keys(source) if key not in ("params", "param_names")}
        kept = {key: value for key, value in own.items() if key == "param_names"}
        moved.append({**options, **kept, "params": own["params"]})
    others = {key: child(tree, key) for key in keys(tree) if key not in ("state", "param_groups")}
    return {"state": Typed("dict", by_place), "param_groups": moved, **others}


def _reads(name: str, part: OptimizerPart, tree: Tree, file: str, report: LoadReport) -> dict[str, StoredTensor]:
    targets, shapes, reads = part.targets(), part.param_shapes(), {}
    shared = [tuple(one.shape) if is_sharded(one) else None for one in part.parameters()]
    of_torch = type(part.obj).__module__.startswith("torch.optim.")  # others mean what they like by exp_avg
    for index, values in tree["state"].payload:
        for key in keys(values):
            leaf = child(values, key)
            if not isinstance(leaf, StoredTensor):
                continue
            path = f"state.{index}.{key}"
            if of_torch and key in _LIKE_PARAMETER and index < len(shapes) and leaf.spec.shape != shapes[index]:
                raise MismatchError(
                    f"`{file}`: `{name}.{path}`: file has {leaf.spec}, the parameter has {shapes[index]}; nothing was "
                    "changed",
                    file=file,
                    path=f"{name}.{path}",
                )
            if leaf.spec.nbytes > _SMALL or path in targets or shared[index : index + 1] == [leaf.spec.shape]:
                reads[path] = leaf
            report.loaded.append(path)
    return reads
