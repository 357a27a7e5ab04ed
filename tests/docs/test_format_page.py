"""docs/format.md against what is really written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.runs.opening import open_any
from holdfast.state.kinds import KINDS
from holdfast.state.payloads import _CHECKS
from tests.docs.pages import ROOT
from tests.runs.test_sharded import commit as commit_sharded

PAGE = (ROOT / "docs/format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def fields(title: str) -> set[str]:
    """The names in the first column of a section's table."""
    cells = re.findall(r"^\| (`[^|]*)\|", section(title), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


class Temperature:
    """An object of the user's own, with a tensor that is trained."""

    def __init__(self) -> None:
        self.value = torch.ones(1, requires_grad=True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.value = state["value"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint that has tied weights, a channels_last tensor and an optimizer."""
    folder = tmp_path_factory.mktemp("format") / "a"
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3, bias=False), "b": torch.nn.Linear(3, 3, bias=False)})
    net["b"].weight = net["a"].weight
    conv = torch.nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    objects = {"model": net, "conv": conv, "optimizer": optimizer, "temperature": Temperature()}
    with holdfast.Run(folder, **objects, save="1ep", best="loss:min") as run:
        for epoch in run.epochs(1):
            for _ in run.batches([1, 2, 3]):
                net["a"](torch.ones(3)).sum().backward()
                optimizer.step()
            run.end(epoch, loss=0.5)
    return folder


def test_the_tree_of_files_is_the_real_one(root: Path) -> None:
    named = set(re.findall(r"([\w.-]+\.(?:json|safetensors))", section("A run").split("```")[1]))
    real = {path.name for path in root.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")}
    assert named - {"reason.json"} <= real
    assert (root / "step-00000003").is_dir()


def test_the_manifest_has_these_fields(root: Path) -> None:
    manifest = json.loads((root / "step-00000003" / "manifest.json").read_text())
    left_out = {"data", "items"}  # tests/remote/test_runs.py and tests/training/test_run.py look at them
    assert set(manifest) == fields("manifest.json") - {"size", "head"} - left_out
    assert list(manifest)[-1] == "digest"


def test_the_entries_have_these_fields(root: Path) -> None:
    content = json.loads((root / "step-00000003" / "entries.json").read_text())
    assert set(content) == {"version", "algorithm", "chunk_size", "entries"}
    assert {name for entry in content["entries"] for name in entry} == fields("entries.json")


def test_the_records_of_single_files_have_these_fields(root: Path) -> None:
    net = torch.nn.Linear(2, 2)
    holdfast.save(net, root / "net.pt")
    holdfast.save(net, root / "net.safetensors")
    text = (root / "net.pt").read_bytes()
    start = text.index(b'{"version":0,"pickle"')
    record, _ = json.JSONDecoder().raw_decode(text[start:].decode("latin-1"))
    assert set(record) == fields("Torch zip")
    header = (root / "net.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    own = json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["holdfast"])
    assert set(own) == {"holdfast", "digest", "chunks", "tree", "objects"}
    assert all(f"`{name}`" in section("Safetensors") for name in own)


def test_the_fields_of_sharded_entries_are_these(tmp_path: Path) -> None:
    content = json.loads((commit_sharded(tmp_path) / "entries.json").read_text())
    known = fields("entries.json") | fields("Several processes")
    assert "rectangles" in {name for entry in content["entries"] for name in entry} <= known


def test_run_json_has_these_fields(root: Path) -> None:
    assert set(json.loads((root / "run.json").read_text())) == fields("run.json")


def test_the_environment_has_these_fields(root: Path) -> None:
    environment = json.loads((root / "step-00000003" / "manifest.json").read_text())["environment"]
    row = next(line for line in section("manifest.json").splitlines() if line.startswith("| `environment`"))
    assert set(environment) | {"git"} == set(re.findall(r"`(\w+)`", row)) - {"environment"}


def test_the_marks_are_these() -> None:
    found = set(re.findall(r"`\$([\w.]+)`", "".join(re.findall(r"^\| (`\$[^|]*)\|", PAGE, re.MULTILINE))))
    of_json = {"tensor", "int", "float", "str", "bytes", "complex", "opaque"}
    assert found == of_json | set(KINDS) | set(_CHECKS)


def test_what_is_recorded_of_objects_is_this(root: Path, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 2))
    holdfast.save(layers, tmp_path / "probed.pt", config={"width": 4}, probe=torch.ones(1, 4))
    holdfast.save(holdfast.quantize(layers, "dynamic-int8"), tmp_path / "quantized.pt")
    found = list(json.loads((root / "step-00000003" / "manifest.json").read_text())["objects"].values())
    for name in ("probed.pt", "quantized.pt"):
        with open_any(tmp_path / name) as container:
            found += container.document().objects.values()
    recorded = {field for record in found for field in record}
    assert recorded <= fields("Objects")
    assert fields("Objects") - recorded <= {"source"}  # of classes whose source Python can find
