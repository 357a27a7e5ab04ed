"""average: equal to torch's own arithmetic, in bounded memory, and refusing what has no average."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast import surgery
from holdfast.errors import ArgumentError, CorruptFile, MismatchError, MissingPart, UnsupportedValue


def refused(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=re.escape(text))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def saved(folder: Path, states: list[Any], suffix: str = ".pt") -> list[str]:
    files = [str(folder / f"{index}{suffix}") for index in range(len(states))]
    for state, file in zip(states, files, strict=True):
        if suffix == ".safetensors":
            safetensors.torch.save_file(state, file)
        else:
            torch.save(state, file)
    return files


def mean(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """In double, rounded once."""
    wide = torch.complex128 if tensors[0].is_complex() else torch.float64
    total = sum(weight * tensor.to(wide) for tensor, weight in zip(tensors, weights, strict=True))
    return (total / sum(weights)).to(tensors[0].dtype)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_every_element_is_torchs_average(suffix: str, weights: list[float] | None, tmp_path: Path) -> None:
    states = [net().state_dict() for _ in range(3)]
    files = saved(tmp_path, [dict(state) for state in states], suffix)
    report = surgery.average(files, tmp_path / f"mean{suffix}", weights=weights)
    read = holdfast.load(tmp_path / f"mean{suffix}")
    for key, value in read.items():
        if value.is_floating_point():
            assert torch.equal(value, mean([state[key] for state in states], weights or [1.0] * 3)), key
    assert report.tensors == len(states[0])
    assert report.sources == files
    assert any("update_bn" in note for note in report.notes)


def test_it_is_what_stochastic_weight_averaging_gives(tmp_path: Path) -> None:
    models = [net() for _ in range(4)]
    swa = torch.optim.swa_utils.AveragedModel(models[0], use_buffers=True)
    for model in models:
        swa.update_parameters(model)
    files = saved(tmp_path, [{"model": model.state_dict(), "epoch": n} for n, model in enumerate(models)])
    surgery.average(files, tmp_path / "swa.pt")
    read = torch.load(tmp_path / "swa.pt", weights_only=True)
    for key, value in swa.module.state_dict().items():
        torch.testing.assert_close(read[key], value, rtol=1e-5, atol=1e-6, check_dtype=True)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_all_floating_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    tensors = [torch.randn(1001, 3, dtype=wide).to(dtype) for _ in range(3)]
    files = saved(tmp_path, [{"w": tensor} for tensor in tensors])
    surgery.average(files, tmp_path / "mean.pt", weights=[3, 1, 1])
    read = torch.load(tmp_path / "mean.pt")["w"]
    assert read.dtype is dtype
    assert torch.equal(read.to(wide), mean(tensors, [3, 1, 1]).to(wide))


def test_the_average_of_equal_files_is_that_file(tmp_path: Path) -> None:
    state = {"w": torch.randn(50, 7), "big": torch.full((3,), torch.finfo(torch.float32).max)}
    files = saved(tmp_path, [state, state, state])
    surgery.average(files, tmp_path / "mean.pt")
    read = torch.load(tmp_path / "mean.pt")
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_blocks_and_odd_sizes_meet(tmp_path: Path) -> None:
    """Larger than several blocks, and beginning at odd places of the file."""
    states = [
        {"a": torch.randn(3), "w": torch.randn(2_600_003).to(torch.float16), "z": torch.randn(1, 0, 2)}
        for _ in range(2)
    ]
    files = saved(tmp_path, states)
    surgery.average(files, tmp_path / "mean.safetensors")
    read = safetensors.torch.load_file(tmp_path / "mean.safetensors")
    assert torch.equal(read["w"], mean([state["w"] for state in states], [1, 1]))
    assert read["z"].shape == (1, 0, 2)


def test_tied_weights_stay_tied_strides_and_parameters_stay(tmp_path: Path) -> None:
    states = []
    for _ in range(2):
        weight = nn.Parameter(torch.randn(6, 4))
        maps = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
        states.append({"embed": weight, "head": weight, "maps": maps, "t": torch.randn(4, 3).t()})
    files = saved(tmp_path, states)
    surgery.average(files, tmp_path / "mean.pt")
    read = torch.load(tmp_path / "mean.pt")
    assert read["embed"].data_ptr() == read["head"].data_ptr()
    assert isinstance(read["embed"], nn.Parameter)
    assert read["maps"].stride() == states[0]["maps"].stride()
    for key in states[0]:
        assert torch.equal(read[key], mean([state[key] for state in states], [1, 1])), key


def test_what_is_tied_on_one_side_only_is_averaged_apart(tmp_path: Path) -> None:
    weight, one, other = torch.ones(3), torch.full((3,), 3.0), torch.full((3,), 5.0)
    files = saved(tmp_path, [{"a": weight, "b": weight}, {"a": one, "b": other}])
    surgery.average(files, tmp_path / "mean.pt")
    read = torch.load(tmp_path / "mean.pt")
    assert (read["a"].tolist(), read["b"].tolist()) == ([2.0] * 3, [3.0] * 3)


def test_strides_that_differ_are_no_obstacle(tmp_path: Path) -> None:
    one, other = torch.randn(4, 6), torch.randn(6, 4).t()
    files = saved(tmp_path, [{"w": one}, {"w": other}])
    surgery.average(files, tmp_path / "mean.pt")
    assert torch.equal(torch.load(tmp_path / "mean.pt")["w"], mean([one, other], [1, 1]))


def test_integers_and_other_values_are_the_last_files_and_said(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = [
        {"w": torch.ones(1), "steps": torch.tensor(step), "same": torch.tensor(7), "_extra_state": {"at": step}}
        for step in (1, 2)
    ]
    files = saved(tmp_path, states)
    report = surgery.average(files, tmp_path / "mean.pt")
    read = torch.load(tmp_path / "mean.pt")
    assert (read["steps"], read["same"], read["_extra_state"]) == (2, 7, {"at": 2})
    assert f"differ and are no floating point: `steps`, `_extra_state` of {files[1]} taken" in report.notes
    same = surgery.average([files[0], files[0]], tmp_path / "same.pt")
    assert not any("differ" in note for note in same.notes)


def test_checkpoints_of_a_run_are_averaged_by_reference(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights = []
    with holdfast.Run(tmp_path / "run", model=model, optimizer=optimizer) as run:
        for step in (1, 2, 3):
            model(torch.ones(3)).sum().backward()
            optimizer.step()
            weights.append(model.weight.detach().clone())
            run.save(step=step)
    root = tmp_path / "run"
    report = surgery.average([f"{root}@-1", f"{root}@-2"], tmp_path / "mean.safetensors")
    fresh = nn.Linear(3, 2)
    assert holdfast.restore(tmp_path / "mean.safetensors", model=fresh).is_exact
    assert torch.equal(fresh.weight, mean(weights[1:], [1, 1]))
    assert "optimizer" in report.left_out
    assert torch.equal(
        holdfast.build(tmp_path / "mean.safetensors", factory=lambda: nn.Linear(3, 2)).weight, fresh.weight
    )


def test_files_of_different_models_are_refused_with_what_differs(tmp_path: Path) -> None:
    one = {"w": torch.ones(2, 3), "b": torch.ones(2), "n": torch.ones(1), "x": 1}
    other = {"w": torch.ones(3, 3), "b": torch.ones(2).half(), "m": torch.ones(1), "x": torch.ones(1)}
    a, b = saved(tmp_path, [one, other])
    with pytest.raises(MismatchError) as caught:
        surgery.average([a, b], tmp_path / "mean.pt")
    text = str(caught.value)
    assert text.startswith(f"`{a}` and `{b}` are not of one model: ")
    assert "`w`: (2, 3) float32 against (3, 3) float32" in text
    assert "`b`: (2,) float32 against (2,) float16" in text
    assert "`n`: (1,) float32 against nothing" in text
    assert "`m`: nothing against (1,) float32" in text
    assert "`x`: no tensor against (1,) float32" in text
    many = saved(tmp_path, [{f"{n}": torch.ones(1) for n in range(9)}, {f"{n}": torch.ones(2) for n in range(9)}])
    with refused(MismatchError, "; and 4 more"):
        surgery.average(many, tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinities_are_refused_and_located(bad: float, tmp_path: Path) -> None:
    good, wrong = torch.zeros(1_000_000), torch.zeros(1_000_000)
    wrong[700_001] = bad
    files = saved(tmp_path, [{"layers.w": good}, {"layers.w": wrong}])
    (tmp_path / "mean.pt").write_bytes(b"old")
    with refused(
        UnsupportedValue,
        f"`{files[1]}`: `layers.w`: element 700,001 is {bad}; leave this checkpoint out, or say nonfinite='keep'",
    ):
        surgery.average(files, tmp_path / "mean.pt")
    assert (tmp_path / "mean.pt").read_bytes() == b"old"
    surgery.average(files, tmp_path / "mean.pt", nonfinite="keep")
    read = torch.load(tmp_path / "mean.pt")["layers.w"]
    assert int(read.isfinite().sum()) == 999_999


def test_a_sum_past_float64_is_no_average(tmp_path: Path) -> None:
    huge = torch.full((2,), torch.finfo(torch.float64).max, dtype=torch.float64)
    files = saved(tmp_path, [{"w": huge}, {"w": huge}])
    with refused(UnsupportedValue, "`w`: the sum of element 0 is past what float64 holds; use smaller weights"):
        surgery.average(files, tmp_path / "mean.pt")
    surgery.average(files, tmp_path / "mean.pt", weights=[0.5, 0.5])
    assert torch.equal(torch.load(tmp_path / "mean.pt")["w"], huge)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_and_sparse_tensors_have_no_average(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for kind, tensor in (("quantized", quantized), ("sparse", torch.eye(2).to_sparse())):
        files = saved(tmp_path, [{"a": torch.ones(1), "w": tensor}] * 2)
        with refused(
            UnsupportedValue, f"0.pt`: `w` is a {kind} tensor, which can't be averaged; average plain tensors"
        ):
            surgery.average(files, tmp_path / "mean.pt")


def test_a_dtype_without_arithmetic_is_refused(tmp_path: Path) -> None:
    packed = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    for name in ("a.safetensors", "b.safetensors"):
        holdfast.save({"w": packed, "a": torch.ones(1)}, tmp_path / name)
    with refused(UnsupportedValue, "`w` is torch.float4_e2m1fn_x2, which can't be averaged"):
        surgery.average([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "mean.pt")


def test_wrong_calls_say_what_is_wanted(tmp_path: Path) -> None:
    a, b = saved(tmp_path, [{"w": torch.ones(1)}] * 2)
    dst = tmp_path / "mean.pt"
    for wrong in ([], [a], a, {"a": a, "b": b}):
        with refused(ArgumentError, "average takes a list of at least two files or references"):
            surgery.average(wrong, dst)  # type: ignore[arg-type]
    with refused(ArgumentError, "average: 2 files and 3 weights; give one for each"):
        surgery.average([a, b], dst, weights=[1, 2, 3])
    for weights in ([0, 0], [1, -1], [1, float("nan")], [1, float("inf")], ["1", "2"]):
        with refused(ArgumentError, "average: weights are numbers of at least 0 and not all 0, not ["):
            surgery.average([a, b], dst, weights=weights)  # type: ignore[arg-type]
    with refused(ArgumentError, "nonfinite is 'maybe'; it takes 'refuse' or 'keep'"):
        surgery.average([a, b], dst, nonfinite="maybe")  # type: ignore[arg-type]
    with refused(ArgumentError, "is a source itself"):
        surgery.average([a, b], b)
    with refused(MissingPart, "0.pt`: has no part `nothing`"):
        surgery.average([a, b], dst, at="nothing")
    assert not dst.exists()


def test_a_damaged_source_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        holdfast.save({"w": torch.zeros(100)}, tmp_path / name)
    data = bytearray((tmp_path / "b.safetensors").read_bytes())
    data[-50] ^= 64
    (tmp_path / "b.safetensors").write_bytes(data)
    with refused(CorruptFile, "b.safetensors`: at byte"):
        surgery.average([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "mean.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_the_digests_of_the_sources_count_as_verified(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        holdfast.save({"w": torch.ones(3)}, tmp_path / name)
    report = surgery.average([tmp_path / "a.pt", tmp_path / "b.pt"], io.BytesIO())
    assert not any("no digest" in note for note in report.notes)


MEASURED = """
import resource, sys, torch
from holdfast.surgery import average
small = [f"{sys.argv[1]}/small-{n}.safetensors" for n in range(3)]
average(small, f"{sys.argv[1]}/small-mean.pt")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
average([f"{sys.argv[1]}/{n}.safetensors" for n in range(3)], f"{sys.argv[1]}/mean.pt")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    """Three files of 400 MB, one tensor of half of it."""
    for index in range(3):
        state = {"large": torch.full((50_000_000,), float(index)), "rest": torch.full((5000, 10_000), 2.0 * index)}
        safetensors.torch.save_file(state, tmp_path / f"{index}.safetensors")
        safetensors.torch.save_file({"w": torch.ones(100_000)}, tmp_path / f"small-{index}.safetensors")
        del state
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=True)
    grown = int(done.stdout) * 1024
    assert grown < 64 * 1024 * 1024
    read = torch.load(tmp_path / "mean.pt", mmap=True)
    assert bool((read["large"][::1000] == 1).all())
    assert bool((read["rest"][::100, ::100] == 2).all())
