"""``holdfast inspect``: what a file holds, without torch and without running anything of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table, size_text
from holdfast.formats.base import Container, Document, StoredTensor
from holdfast.formats.tensors import needed_bytes
from holdfast.runs.opening import open_any
from holdfast.spec import Path
from holdfast.state.flatten import leaves, needed_classes
from holdfast.state.modules import ROOT, find_modules, with_states
from holdfast.state.paths import dotted, matches, printable
from holdfast.state.quantization import quantization_line
from holdfast.state.tree_view import Leaf, tree_lines, value_lines
from holdfast.state.values import Tree

WHAT = {
    "dcp": "a folder of torch.distributed.checkpoint",
    "npz": "arrays of numpy",
    "run-checkpoint": "a checkpoint of a run",
    "safetensors": "a file of tensors and nothing that could run",
    "sharded": "a model in several files, with their index",
    "torch-export": "a program of torch.export with its weights",
    "torch-legacy": "what torch.save wrote before torch 1.6",
    "torch-tar": "what torch.save wrote in 2016",
    "torch-zip": "what torch.save writes since torch 1.6",
    "torchscript": "a TorchScript program with its weights",
}
"""Each format in words."""
_VALUES = 40
_LONG = 200
_Tensors = list[tuple[Path, StoredTensor]]


@click.command("inspect", epilog='Example: holdfast inspect model.pt --keys "layers.0.*"')
@click.argument("f", metavar="F")
@click.option("--keys", "glob", metavar="GLOB", help="Only what has a matching path; * also crosses dots.")
@click.option("--state", "everything", is_flag=True, help="Every line: no block is collapsed, no value left out.")
@click.option("--opaque", is_flag=True, help="Objects as the pickle has them: class names, arguments and attributes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(f: str, glob: str | None, everything: bool, opaque: bool, as_json: bool) -> None:
    """Say what F is (a file, checkpoint, run or reference) and what it holds. Headers are read, tensors are not."""
    with open_any(f) as container:
        document = container.document()
        tree = document.tree if opaque else with_states(document.tree)[0]
        tensors = [item for item in leaves(tree) if glob is None or matches(item[0], glob)]
        values = [one for one in value_lines(tree) if glob is None or matches((one[0],), glob)]
        modules = _modules(document.tree, glob)
        if as_json:
            say_json(_as_json(container, document, tensors, values) | {"modules": modules})
            return
        _print_head(container, document, tensors)
        _print_modules(modules, everything=everything)
        _print_tensors(tensors, everything=everything)
        _print_shared(tensors)
        _print_values(values, everything=everything)


def _as_json(
    container: Container, document: Document, tensors: _Tensors, values: list[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "file": container.file,
        "format": container.format,
        "what": WHAT[container.format],
        "opaque": needed_classes(document.tree),
        "bytes": _stored(tensors),
        "tensors": [
            {
                "path": list(path),
                "name": dotted(path),
                "dtype": tensor.spec.dtype,
                "shape": list(tensor.spec.shape),
                "stride": tensor.live_stride or tensor.spec.stride,
                "bytes": needed_bytes(tensor.spec),
                "location": tensor.segment.location,
                "requires_grad": tensor.requires_grad,
            }
            for path, tensor in tensors
        ],
        "shared": [[dotted(path) for path in group] for group in _shared(tensors)],
        "values": dict(values),
        "objects": sorted(document.objects),
        "quantized": _quantized(document),
        "metadata": document.metadata,
    }


def _quantized(document: Document) -> dict[str, str]:
    """How each object is quantized that is."""
    said = {path: quantization_line(record) for path, record in document.objects.items()}
    return {path or ROOT: line for path, line in said.items() if line is not None}


def _print_head(container: Container, document: Document, tensors: _Tensors) -> None:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in _counted([tensor.spec.dtype for _, tensor in tensors]))
    count = f"{len(tensors):,} tensor{'' if len(tensors) == 1 else 's'}"
    say(f"{printable(container.file)}: {container.format}, {count}, {size_text(_stored(tensors))}")
    say(f"  {WHAT[container.format]}{_writer(document)}")
    if dtypes:
        say(f"  dtypes: {dtypes}")
    if container.format == "run-checkpoint":
        _print_position(container)
    opaque = needed_classes(document.tree)
    if opaque:
        names = ", ".join(printable(name[:100]) for name in opaque[:10]) + (" ..." if len(opaque) > 10 else "")
        say(coloured(f"  holds objects of classes that only a pickle would rebuild: {names}", "yellow"))
        say("  nothing of them was run; torch.load(weights_only=False) would run them; holdfast scan names all")
    elif container.format in ("torch-export", "torchscript"):
        _print_program(container)
    else:
        say("  safe: tensors and plain values; nothing in it asks to run code")
    for name, text in _quantized(document).items():
        say(f"  quantized: {text}" if name == ROOT else f"  quantized, {printable(name[:60])}: {text}")
    for name, text in document.metadata.items():
        say(f"  {printable(name[:60])}: {printable(text[:200])}")


def _writer(document: Document) -> str:
    """Who wrote it, where that shows."""
    return "; holdfast wrote it, with a record of its objects" if document.objects else ""


def _print_program(container: Container) -> None:
    """A program beside the weights: nothing of it is run, and of torch.export's it is known whether running is safe."""
    from holdfast.formats.exported import Exported  # what knows programs is loaded for programs

    say("  a program with its weights: the weights are safe to read, and nothing of the program was run")
    if not isinstance(container, Exported):
        say(coloured("  TorchScript is code that can't be audited: build runs it only when trusted= says so", "yellow"))
        return
    audit = container.audit()
    for one in audit.findings:
        say(coloured(f"  not known to be harmless: {printable(one.member)}: {printable(one.what)}", "yellow"))
    if not audit.findings:
        say("  the program was audited: nothing in it is known to run code of its own; holdfast.build makes its module")


def _print_position(container: Container) -> None:
    from holdfast.runs.checkpoint import Checkpoint  # what knows runs is loaded for runs

    if isinstance(container, Checkpoint):
        manifest = container.manifest
        epoch = "" if manifest.epoch is None else f", epoch {manifest.epoch}"
        batch = "" if manifest.batch is None else f", batch {manifest.batch}"
        say(f"  step {manifest.step}{epoch}{batch} of run {printable(manifest.run)}")


def _counted(names: Sequence[str]) -> list[tuple[str, int]]:
    return sorted(((name, names.count(name)) for name in set(names)), key=lambda item: (-item[1], item[0]))


def _stored(tensors: _Tensors) -> int:
    """Bytes that are stored for these tensors, what they share counted once."""
    seen: dict[int, int] = {}
    for _, tensor in tensors:
        seen[id(tensor.segment)] = tensor.segment.length
    return sum(seen.values())


def _print_tensors(tensors: _Tensors, *, everything: bool) -> None:
    if not tensors:
        return
    say()
    listed = [
        Leaf(printable(dotted(path)), f"{tuple(tensor.spec.shape)} {tensor.spec.dtype}", needed_bytes(tensor.spec))
        for path, tensor in tensors
    ]
    if everything:
        rows = [[leaf.path, leaf.text, "", size_text(leaf.nbytes)] for leaf in listed]
    else:
        rows = [
            [
                f"{'  ' * line.depth}{line.name}",
                line.text,
                f"x{line.count}" if line.count > 1 else "",
                size_text(line.nbytes),
            ]
            for line in tree_lines(listed)
        ]
    say_table(["tensors", "", "", ""], rows, right=(2, 3))


def _modules(tree: Tree, glob: str | None) -> list[list[str]]:
    """The parts of the whole modules in a tree: dotted path, and what each is."""
    modules = find_modules(tree)
    if not modules:
        return []
    from holdfast.state.skeleton import outline  # a table of all layers, which most files do without

    found = []
    for path, module in modules.items():
        for name, text in outline(module):
            full = dotted(path) if name == ROOT else dotted((*path, name))
            if glob is None or matches((full,), glob):
                found.append([full, text])
    return found


def _print_modules(modules: list[list[str]], *, everything: bool) -> None:
    if not modules:
        return
    say()
    shown = modules if everything else modules[:_VALUES]
    say_table(["modules", ""], [[printable(path), printable(text[:_LONG])] for path, text in shown])
    if len(shown) < len(modules):
        say(f"... {len(modules) - len(shown)} more: --state")


def _shared(tensors: _Tensors) -> list[list[Path]]:
    """Paths that lie in one memory."""
    groups: dict[int, list[Path]] = {}
    for path, tensor in tensors:
        groups.setdefault(id(tensor.segment), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _print_shared(tensors: _Tensors) -> None:
    groups = _shared(tensors)
    if groups:
        say()
        say("shared memory")
        for group in groups:
            say(f"  {' = '.join(printable(dotted(path)) for path in group)}")


def _print_values(values: list[tuple[str, str]], *, everything: bool) -> None:
    if not values:
        return
    say()
    shown = values if everything else values[:_VALUES]
    say_table(["values", ""], [[printable(path), printable(text)] for path, text in shown])
    if len(shown) < len(values):
        say(f"... {len(values) - len(shown)} more: --state")
