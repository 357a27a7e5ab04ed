"""Less out of more: the weights out of a checkpoint, one part out of a file."""

from __future__ import annotations

from typing import Any

from holdfast.errors import ArgumentError
from holdfast.formats.base import Document
from holdfast.formats.writing import Destination
from holdfast.spec import Path
from holdfast.state.paths import dotted
from holdfast.surgery.report import Rewritten
from holdfast.surgery.states import beside, find_at, find_state, stored_bytes
from holdfast.surgery.writing import opened


def strip(src: Any, dst: Destination, *, at: str | None = None, format: str | None = None) -> Rewritten:  # noqa: A002
    """Writes the weights of a checkpoint alone, for inference: the model's state_dict and how it is constructed.

    Args:
        src: a path, a reference (``runs/a@best``) or a binary file object.
        dst: a path or a binary file object.
        at: dotted path of the model's state_dict, where it is not found by itself.
        format: ``pt`` or ``safetensors``; by default by the suffix of ``dst``.

    Returns:
        What was written; ``left_out`` and ``saved`` say what was not.

    Raises:
        MissingPart, AmbiguousPart: no state_dict, or several; says what the file has.
        MismatchError: what is at ``at`` is no state_dict, or has no tensors.
        CorruptFile: a digest of the source differs.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> saved = holdfast.save({"model": net, "optimizer": optimizer, "epoch": 3}, "last.pt")
        >>> list(holdfast.surgery.strip("last.pt", "net.safetensors").left_out)
        ['optimizer', 'epoch']
    """
    with opened([src], dst, format) as surgery:
        (source,) = surgery.sources
        tree = source.document.tree
        path, state = find_state(tree, at, source.file)
        left = {dotted(sub): stored_bytes(item, besides=state) for sub, item in beside(tree, path, state)}
        return surgery.write(_alone(source.document, path, state), left_out=left)


def extract(src: Any, dst: Destination, part: str, *, format: str | None = None) -> Rewritten:  # noqa: A002
    """Writes one part of a file as a file of its own: an object's state, a value, a tensor, or a module's weights.

    Args:
        src: a path, a reference or a binary file object.
        dst: a path or a binary file object.
        part: its dotted path: ``model``, ``args.lr``, ``model.fc.weight``; ``model.encoder`` for all weights whose
            names begin so, which then stand in the file without ``encoder.``.
        format: as in ``strip``.

    Returns:
        What was written.

    Raises:
        MissingPart: there is no such part; says what is near.
        AmbiguousPart: two parts have this path.
        ArgumentError: no part is named.
        CorruptFile, StorageError: as in ``strip``.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> saved = holdfast.save({"model": net, "epoch": 3}, "last.pt")
        >>> made = holdfast.surgery.extract("last.pt", "second.pt", "model.1")
        >>> list(holdfast.load("second.pt"))
        ['weight', 'bias']
    """
    if not isinstance(part, str) or not part:
        raise ArgumentError(f"extract takes the dotted path of a part, such as 'model'; not {part!r:.80}")
    with opened([src], dst, format) as surgery:
        (source,) = surgery.sources
        path, tree = find_at(source.document.tree, part, source.file, beginnings=True)
        return surgery.write(_alone(source.document, path, tree))


def _alone(document: Document, path: Path, part: Any) -> Document:
    """A document of one part, with what was recorded of the objects in it."""
    name = dotted(path) if path else ""
    objects = {
        key.removeprefix(name).removeprefix("."): record
        for key, record in document.objects.items()
        if not name or key == name or key.startswith(f"{name}.")
    }
    return Document(part, objects, document.metadata)
