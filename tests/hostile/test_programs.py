"""Planted programs of torch.export: plain torch runs them, and nothing here does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.cli.main import main
from holdfast.errors import ArgumentError, CorruptFile, HoldfastError, RefusedFile
from holdfast.export.loading import load_program, rebuilt
from holdfast.formats.detect import open_container
from holdfast.formats.exported import Exported
from holdfast.serialization.devices import Placement
from holdfast.storage.source import MemorySource
from tests.hostile import program_plants as plants

IS_213 = torch.__version__.startswith("2.13.")
COMPILED = {"compiled_member"}
"""Plants that need a C compiler to be made."""


@pytest.fixture(scope="module")
def honest() -> bytes:
    return plants.honest()


@pytest.fixture(scope="module")
def folder(honest: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every plant as a file, its marker beside it with no suffix."""
    made = tmp_path_factory.mktemp("planted")
    (made / "honest.pt2").write_bytes(honest)
    for name in plants.PLANTS:
        (made / f"{name}.pt2").write_bytes(plants.planted(honest, name, str(made / name)))
    return made


@pytest.fixture(scope="module")
def controls(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What plain torch does with a copy of each: the stage in which its marker appeared, and what was raised."""
    here = tmp_path_factory.mktemp("control")
    data = (folder / "honest.pt2").read_bytes()
    for name in plants.PLANTS:
        (here / f"{name}.pt2").write_bytes(plants.planted(data, name, str(here / name)))
    (here / "honest.pt2").write_bytes(data)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("program_control.py"), json.dumps(["honest", *plants.PLANTS])],
        cwd=here, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


# -- plants


@pytest.mark.skipif(not IS_213, reason="which plants run was seen with torch 2.13")
@pytest.mark.parametrize("name", plants.PLANTS)
def test_plain_torch_runs_the_plant(controls: dict[str, Any], name: str) -> None:
    """The attacks are real: each marker appears where STAGES says, and for the others plain torch has an error."""
    if name in COMPILED and shutil.which("gcc") is None and shutil.which("cc") is None:
        pytest.skip("no C compiler to make the library with")
    assert controls[name][0] == plants.STAGES.get(name), controls[name][1]


def test_the_unchanged_program_runs_in_the_control(controls: dict[str, Any]) -> None:
    assert controls["honest"] == [None, "ran"]


VERBS: dict[str, Callable[[Path], Any]] = {
    "build": holdfast.build,
    "build with words of trust": lambda f: holdfast.build(f, trusted={"torch.export", "torch.jit.ScriptModule"}),
    "load": holdfast.load,
    "summary": holdfast.summary,
    "restore": lambda f: holdfast.restore(f, model=plants.Net(), match=holdfast.Warm()),
    "build with a factory": lambda f: holdfast.build(f, factory=plants.Net),
    "scan": lambda f: cli("scan", f),
    "inspect": lambda f: cli("inspect", f),
    "verify": lambda f: cli("verify", f),
}


@pytest.mark.parametrize("name", plants.PLANTS)
def test_no_verb_runs_the_plant(folder: Path, name: str) -> None:
    path = folder / f"{name}.pt2"
    before = set(sys.modules)
    for verb in VERBS.values():
        with contextlib.suppress(HoldfastError):
            verb(path)
        assert not (folder / name).exists()
    assert not [one for one in set(sys.modules) - before if one.endswith("_module")]


@pytest.mark.parametrize("name", [name for name in plants.PLANTS if name not in plants.HARMLESS])
def test_the_plant_is_refused_by_name(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{name}.pt2"
    with pytest.raises(RefusedFile, match="are not known to be harmless: ") as refused:
        holdfast.build(path)
    assert str(refused.value).startswith(f"`{path}`: this program is not loaded")
    assert str(refused.value).endswith("Its weights are safe to read: holdfast.load, or build with factory=")
    assert cli("scan", path) == 2
    assert "its program: " in capsys.readouterr().out
    assert holdfast.scan(path).is_dangerous


def test_what_is_dropped_is_no_danger(folder: Path) -> None:
    for name in plants.HARMLESS:
        module = holdfast.build(folder / f"{name}.pt2")
        assert set(module(*plants.arguments())) == {"out", "rest"}
        assert not (folder / name).exists()


def test_what_scan_and_inspect_say_of_an_honest_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "honest.pt2"
    assert cli("scan", path) == 0
    assert "its program of torch.export: every part is known to be harmless" in capsys.readouterr().out
    assert cli("scan", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["program"] == []
    assert cli("inspect", path) == 0
    assert "the program was audited" in capsys.readouterr().out
    assert cli("inspect", folder / "guard.pt2") == 0
    assert "not known to be harmless: models/model.json: the guard" in capsys.readouterr().out


def test_the_audit_needs_no_torch(folder: Path) -> None:
    script = "import sys; from holdfast.formats.scan import scan; assert scan(sys.argv[1]).program; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "guard.pt2")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_the_file_that_torch_gets_is_the_one_that_was_audited(
    honest: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes between the audit and the load: torch is given what was read."""
    path = tmp_path / "net.pt2"
    path.write_bytes(honest)
    theirs = torch.export.load

    def later(f: Any) -> Any:
        path.write_bytes(plants.planted(honest, "guard", str(tmp_path / "guard")))
        return theirs(f)

    monkeypatch.setattr(torch.export, "load", later)
    assert set(holdfast.build(path)(*plants.arguments())) == {"out", "rest"}
    assert not (tmp_path / "guard").exists()


# -- members and JSON


def without(name: str) -> Callable[[plants.Program], None]:
    return lambda program: program.members.pop(name) and None


def with_member(name: str, content: bytes) -> Callable[[plants.Program], None]:
    return lambda program: program.members.update({name: content})


def with_json(change: Callable[[Any], Any]) -> Callable[[plants.Program], None]:
    return lambda program: change(program.json) and None


def second_program(program: plants.Program) -> None:
    for name in [name for name in program.members if "model" in name]:
        program.members[name.replace("model.", "other.").replace("model_", "other_")] = program.members[name]
    program.members["models/other.json"] = program.members["models/model.json"]


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def two_values(program: plants.Program) -> None:
    program.graph["inputs"][0] = {"as_int": 1, "as_bool": True}


def with_weight(**fields: Any) -> Callable[[plants.Program], None]:
    """Changes what the file says of one weight."""

    def change(program: plants.Program) -> None:
        config = program.config(plants.WEIGHTS)
        config["fc.weight"].update(fields)
        program.put_config(plants.WEIGHTS, config)

    return change


def with_tree(tree: Any) -> Callable[[plants.Program], None]:
    return lambda program: program.call.update(out_spec=json.dumps([1, tree]))


LEAF = {"type": None, "context": None, "children_spec": []}
NO_NAME = r"the name 'a b' is no plain name of letters, digits and _"

LIES: dict[str, tuple[Callable[[plants.Program], Any], str]] = {
    "two programs": (second_program, r"models: holds 2 programs \((model, other|other, model)\); one is wanted"),
    "no samples": (without(plants.SAMPLES), r"data/sample_inputs/model\.pt: is missing"),
    "no config": (without(plants.WEIGHTS), r"model_weights_config\.json: is missing"),
    "a later version": (with_member("archive_version", b"1"), r"archive_version: says b'1'; only 0 is known"),
    "big-endian": (with_member("byteorder", b"big"), r"byteorder: says b'big'; only little is known"),
    "an unknown member": (with_member("run.sh", b"#!"), r"run\.sh: is nothing that torch\.export\.save writes"),
    "executorch": (with_member("executorch/a.pte", b"x"), r"is a program for ExecuTorch"),
    "no JSON": (lambda p: setattr(p, "json", []), r"models/model\.json: Expected `object`, got `array`"),
    "two values": (two_values, r"has 2 values where one is wanted - at `\$\.graph_module\.graph\.inputs\[0\]`"),
    "no verifier": (with_json(lambda j: j.update(verifiers=[])), r"Expected `array` of length >= 1"),
    "an unknown field": (with_json(lambda j: j.update(run="x")), r"unknown field `run`"),
    "no samples of a call": (with_member(plants.SAMPLES, plants.saved([1])), r"are no pair of arguments and keywords"),
    "samples with odd keywords": (with_member(plants.SAMPLES, plants.saved(((1,), 1))), r"the keywords of the sample"),
    "samples with odd keys": (with_member(plants.SAMPLES, plants.saved((({1.5: 1},), {}))), r"has a key of type float"),
    "deep samples": (
        with_member(plants.SAMPLES, plants.saved(((nested(70),), {}))),
        r"the sample inputs are nested too deeply",
    ),
    "a range of too many symbols": (
        with_json(lambda j: j["range_constraints"].update({"u99999999": {"min_val": 0, "max_val": 1}})),
        r"is no symbol that may have a range",
    ),
    "a namedtuple": (
        with_json(lambda j: j["graph_module"].update(treespec_namedtuple_fields={"a.B": {"field_names": []}})),
        r"its arguments or results hold the class a\.B",
    ),
    "an object of C++": (
        with_json(
            lambda j: j["graph_module"]["graph"].update(custom_obj_values={"a": {"name": "a", "class_fqn": "b"}})
        ),
        r"objects of classes that a library defines in C\+\+",
    ),
    "text for an operator": (
        with_json(
            lambda j: j["graph_module"]["graph"]["nodes"][-1]["inputs"].append(
                {"name": "x", "arg": {"as_string": "y"}, "kind": 2}
            )
        ),
        r"torch\.ops\.aten\.add\.Tensor is given text",
    ),
    "a graph for an operator": (
        with_json(
            lambda j: j["graph_module"]["graph"]["nodes"][-1]["inputs"].append(
                j["graph_module"]["graph"]["nodes"][1]["inputs"][1]
            )
        ),
        r"torch\.ops\.aten\.add\.Tensor is given a graph to run",
    ),
    "samples of a class": (
        with_member(plants.SAMPLES, plants.saved(((torch.Size([1]),), {}))),
        r"the sample inputs hold a torch\.Size; only tensors and plain values are known to be harmless",
    ),
    "an operator that gives a graph": (
        with_json(
            lambda j: j["graph_module"]["graph"]["nodes"][-1]["outputs"].append(
                {"as_graph": j["graph_module"]["graph"]["nodes"][1]["inputs"][1]["arg"]["as_graph"]}
            )
        ),
        r"torch\.ops\.aten\.add\.Tensor gives a graph",
    ),
    "a weight in a file of another kind": (
        lambda p: with_weight(path_name="run.sh")(p) or with_member("data/weights/run.sh", bytes(24))(p),
        r"'run\.sh' is no file of a tensor",
    ),
    "a name with blanks": (with_json(lambda j: j["graph_module"]["graph"]["nodes"][-1].update(name="a b")), NO_NAME),
    "a weight with a private name": (
        lambda p: p.put_config(plants.WEIGHTS, {"__class__": p.config(plants.WEIGHTS)["fc.weight"]}),
        r"the name '__class__' is no plain dotted name",
    ),
    "a text with quotes": (
        with_json(lambda j: j["graph_module"]["graph"]["inputs"].__setitem__(7, {"as_string": "a'b"})),
        r"the text .a'b. has marks that could end a string of Python",
    ),
    "a dtype of tomorrow": (
        with_json(lambda j: j["graph_module"]["graph"]["tensor_values"]["x"].update(dtype=99)),
        r"99 is no dtype that is known",
    ),
    "a leaf with children": (
        with_tree({"type": None, "context": None, "children_spec": [LEAF]}),
        r"a leaf of a tree of arguments has something in it",
    ),
    "a list with a context": (
        with_tree({"type": "builtins.list", "context": "x", "children_spec": []}),
        r"a builtins\.list in a tree of arguments has a context",
    ),
    "a dict without keys": (
        with_tree({"type": "builtins.dict", "context": "{}", "children_spec": []}),
        r"the keys '\{\}' of a dict of arguments are no texts and integers",
    ),
    "a tree that is no JSON": (
        lambda p: p.call.update(out_spec="[1,"),
        r"the tree of arguments '\[1,' is no JSON",
    ),
    "a call without arguments": (
        lambda p: p.call.update(in_spec=json.dumps([1, LEAF])),
        r"the arguments of the program's call are no tuple with a dict of keywords",
    ),
    "a version that is none": (with_json(lambda j: j.update(torch_version="'")), r"is no version of torch"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_else_is_refused(honest: bytes, name: str) -> None:
    change, message = LIES[name]
    program = plants.Program(honest)
    change(program)
    with pytest.raises(RefusedFile, match=message):
        holdfast.build(io.BytesIO(program.data()))


def test_a_weight_that_is_missing_is_said(honest: bytes) -> None:
    program = plants.Program(honest)
    del program.members["data/weights/weight_0"]
    found = holdfast.scan(io.BytesIO(program.data())).program
    assert [(one.member, one.what) for one in found or ()] == [("data/weights/weight_0", "is missing (`fc.weight`)")]
    with pytest.raises(CorruptFile, match=r"`fc\.weight` should be in data/weights/weight_0, which is missing"):
        holdfast.build(io.BytesIO(program.data()))


def test_a_weight_of_an_open_size_is_said(honest: bytes) -> None:
    program = plants.Program(honest)
    config = program.config(plants.WEIGHTS)
    config["fc.weight"]["tensor_meta"]["sizes"] = program.graph["tensor_values"]["x"]["sizes"]
    program.put_config(plants.WEIGHTS, config)
    found = holdfast.scan(io.BytesIO(program.data())).program
    assert "`fc.weight` is described as a tensor of a size that is not known" in str(found)


def test_json_past_the_stack_is_refused(honest: bytes) -> None:
    data = repacked(plants.Program(honest), b'{"graph_module":{"graph":{"custom_obj_values":{"a":' + b"[" * 100_000)
    assert "models/model.json" in str(found := holdfast.scan(io.BytesIO(data)).program)
    assert "is nested too deeply" in str(found)


def test_a_file_without_a_program_is_said_to_have_none() -> None:
    stream = io.BytesIO(plants.saved({"w": torch.ones(1)}))
    with (
        open_container(MemorySource(stream.getvalue()), "w.pt") as container,
        pytest.raises(ArgumentError, match=r"`w\.pt`: holds no program"),
    ):
        load_program(container, None, (), mode="eval")


def test_what_was_refused_is_given_to_torch_by_nobody(honest: bytes) -> None:
    program = plants.Program(honest)
    with_json(lambda j: j["graph_module"]["graph"]["nodes"][-1].update(name="a b"))(program)
    with open_container(MemorySource(program.data()), "net.pt2") as container:
        assert isinstance(container, Exported)
        with pytest.raises(RefusedFile, match=r"`net\.pt2`: was not audited"):
            rebuilt(container, container.audit(), Placement(None))


def test_json_that_makes_no_sense_is_an_error_of_ours(honest: bytes) -> None:
    program = plants.Program(honest)
    program.graph["nodes"][0]["inputs"][0]["arg"]["as_tensor"]["name"] = "nobody"
    with pytest.raises(HoldfastError, match=r"is harmful, but torch .* can't load it: KeyError: 'nobody'"):
        holdfast.build(io.BytesIO(program.data()))
    del program.json["torch_version"]
    with pytest.raises(HoldfastError, match="; it was written by torch of an unknown version"):
        holdfast.build(io.BytesIO(program.data()))


def test_duplicate_keys_are_read_once(honest: bytes, tmp_path: Path) -> None:
    """Two readers may disagree about which of two values counts; torch gets one."""
    program = plants.Program(honest)
    marker = tmp_path / "marker"
    text = json.dumps(program.json)
    evil = json.dumps({"guards_code": [plants.code(str(marker)) + " or True"]})[1:-1]
    for both in (f"{{{evil}, {text[1:]}", f"{text[:-1]}, {evil}}}"):
        data = repacked(program, both.encode())
        with contextlib.suppress(RefusedFile):
            holdfast.build(io.BytesIO(data))(*plants.arguments())
        assert not marker.exists()


def repacked(program: plants.Program, text: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {**program.members, plants.MODEL: text}.items():
            archive.writestr(f"{program.top}/{name}", content)
    return target.getvalue()


# -- mutations

TRAPS = [
    "open('MARK','w')",
    "' or open('MARK','w') or '",
    '" + str(open("MARK","w")) + "',
    "x=open('MARK','w')",
    "torch.os.mkdir",
    "__import__('os').mkdir('MARK')",
    "a\nopen('MARK','w')",
    "s0",
    "",
    "L['x']",
    "é",
    "\u202e",
    "0",
]


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values and keys."""
    if type(tree) not in (dict, list):
        return [path]
    found = [path]
    for key, value in tree.items() if type(tree) is dict else enumerate(tree):
        found += leaves(value, (*path, key))
    return found


def mutate(tree: Any, rng: random.Random, marker: str) -> None:
    """Changes one place: another value, another key, a copy, or nothing there."""
    path = rng.choice([path for path in leaves(tree) if path])
    inside = tree
    for key in path[:-1]:
        inside = inside[key]
    trap = rng.choice(TRAPS).replace("MARK", marker)
    other: Any = rng.choice([trap, trap, trap, None, True, -1, 1 << 40, 1.5, [], {}, [trap], {trap: trap}])
    how = rng.random()
    if how < 0.6:
        inside[path[-1]] = other
    elif how < 0.75 and type(inside) is dict:
        inside[trap] = inside.pop(path[-1])
    elif how < 0.9 and type(inside) is dict:
        inside[rng.choice(["as_operator", "as_string", "as_name", "as_custom_obj", "metadata", trap])] = other
    else:
        del inside[path[-1]]


def test_mutations_of_the_json_run_nothing(honest: bytes, tmp_path: Path) -> None:
    """A few hundred: each is refused, or torch can't load it, or it is a module that runs without the marker."""
    marker = tmp_path / "marker"
    outcomes = {"refused": 0, "loaded": 0}
    for seed in range(int(os.environ.get("HOLDFAST_MUTATIONS", "300"))):
        rng = random.Random(seed)
        program = plants.Program(honest)
        for _ in range(rng.choice([1, 1, 1, 2])):
            target = rng.choice([plants.MODEL] * 6 + [plants.WEIGHTS, plants.CONSTANTS])
            if target == plants.MODEL:
                mutate(program.json, rng, str(marker))
            else:
                config = json.loads(program.members[target])
                mutate(config, rng, str(marker))
                program.members[target] = json.dumps(config).encode()
        try:
            module = holdfast.build(io.BytesIO(program.data()))
        except HoldfastError:
            outcomes["refused"] += 1
        else:
            assert isinstance(module, torch.nn.Module)
            outcomes["loaded"] += 1
            # wrong sizes, say; a program that is stopped inside no_grad leaves torch in it
            with contextlib.suppress(Exception), torch.enable_grad():
                module(*plants.arguments())
        assert not marker.exists(), f"seed {seed}"
    assert min(outcomes.values()) > 10, outcomes


def test_the_audit_bears_any_bytes(honest: bytes) -> None:
    """Members of noise and of deep nesting: findings, and no other error."""
    for text in (b"", b"\0" * 64, b"[" * 100_000, b'{"a":' * 50_000, json.dumps({"graph_module": "\ud800"}).encode()):
        program = plants.Program(honest)
        with open_container(MemorySource(repacked(program, text)), "m.pt2") as container:
            assert container.audit().findings  # type: ignore[attr-defined]
