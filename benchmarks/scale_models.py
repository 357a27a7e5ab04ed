"""Large models as benchmarks/scale.py sees them: the shapes of their parameters, and what is saved of each."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.spec import TensorSpec


@dataclass(frozen=True)
class Group:
    """Tensors of one shape: ``count`` of them, ``rows`` times ``columns`` elements, cut along the rows."""

    count: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Model:
    """What is saved.

    Attributes:
        name: in the tables.
        groups: its parameters, by shape.
        dtypes: of what is saved of each parameter: itself, then what the optimizer keeps of it.
    """

    name: str
    groups: tuple[Group, ...]
    dtypes: tuple[str, ...] = ("bfloat16", "float32", "float32", "float32")

    @property
    def parameters(self) -> int:
        return sum(group.count * group.rows * group.columns for group in self.groups)

    @property
    def bytes(self) -> int:
        return sum(self.parameters * TensorSpec(dtype, ()).itemsize for dtype in self.dtypes)

    @property
    def tensors(self) -> int:
        return sum(group.count for group in self.groups) * len(self.dtypes)


def decoder(name: str, layers: int, hidden: int, kv: int, inner: int, vocabulary: int) -> Model:
    """A decoder in Llama's form: four matrices of attention, three of the MLP and two norms a layer."""
    groups = (
        Group(2 * layers, hidden, hidden),
        Group(2 * layers, kv, hidden),
        Group(2 * layers, inner, hidden),
        Group(layers, hidden, inner),
        Group(2 * layers + 1, hidden, 1),
        Group(2, vocabulary, hidden),
    )
    return Model(name, groups)


MODELS = (
    decoder("7B", 32, 4096, 4096, 11008, 32000),
    decoder("70B", 80, 8192, 1024, 28672, 128256),
    decoder("400B", 126, 16384, 1024, 53248, 128256),
)
"""The published shapes of Llama 2 7B, Llama 3 70B and Llama 3.1 405B."""
