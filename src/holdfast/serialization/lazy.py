"""A tensor of a file that is read only when asked for."""

from __future__ import annotations

import torch

from holdfast.formats.base import StoredTensor
from holdfast.serialization.devices import MapLocation, Placement
from holdfast.serialization.reading import read_tree
from holdfast.spec import TensorSpec
from holdfast.state.flatten import leaves
from holdfast.state.values import Tree


class LazyTensor:
    """A tensor that is still in its file.

    Attributes:
        name: its dotted path.
        spec: dtype, shape and stride, known from the header.
    """

    def __init__(self, name: str, tree: Tree, file: str) -> None:
        self.name = name
        (stored,) = (leaf for _, leaf in leaves(tree))
        self.spec: TensorSpec = stored.spec
        self._tree = tree
        self._file = file

    def read(self, map_location: MapLocation = None) -> torch.Tensor:
        """Reads and verifies the tensor.

        Args:
            map_location: as in ``holdfast.load``.

        Raises:
            CorruptFile: its bytes differ from their digest.
        """
        tensor: torch.Tensor = read_tree(self._tree, self._file, placement=Placement(map_location))
        return tensor

    def __repr__(self) -> str:
        return f"LazyTensor({self.name}: {self.spec})"


def lazy_tensors(tree: Tree, file: str) -> dict[str, LazyTensor]:
    """Every strided tensor of a tree by its dotted path, in order; of two paths that print the same, the first."""
    found: dict[str, LazyTensor] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, StoredTensor):
            name = ".".join(str(key) for key in path)
            found.setdefault(name, LazyTensor(name, leaf, file))
    return found
