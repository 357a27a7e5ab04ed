"""Programs back to modules: honest ones of every kind give the answers that plain torch gives, bit for bit."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree

import holdfast
from holdfast.errors import ArgumentError, DeviceUnavailable, MismatchError, RefusedFile

Point = namedtuple("Point", "x y")
_pytree._register_namedtuple(Point, serialized_type_name="tests.Point")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def exported(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.eval(), args, kwargs, **options)


def decomposed(net: nn.Module, args: tuple[Any, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.eval(), args).run_decompositions()


def saved(program: Any) -> bytes:
    target = io.BytesIO()
    torch.export.save(program, target)
    return target.getvalue()


def build(data: bytes, *args: Any, **options: Any) -> Any:
    return holdfast.build(io.BytesIO(data), *args, **options)


def rewritten(data: bytes, change: Callable[[str, bytes], bytes], **more: bytes) -> bytes:
    """An archive with its members changed, and others beside them."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in more.items():
            new.writestr(f"archive/data/weights/{name}", content)
    return target.getvalue()


def plain(data: bytes) -> Any:
    """The module as torch alone loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(data)).module()


def same(ours: Any, theirs: Any) -> bool:
    mine, my_spec = _pytree.tree_flatten(ours)
    other, other_spec = _pytree.tree_flatten(theirs)
    return my_spec == other_spec and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, other, strict=True)
    )


# -- kinds of programs


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, tokens: Any) -> Any:
        out, (hidden, _) = self.lstm(self.embed(tokens))
        return out, hidden


class Counting(nn.Module):
    """Changes a buffer; another buffer isn't saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(2) * 3, persistent=False)

    def forward(self, x: Any) -> Any:
        self.calls.add_(1)
        return x * self.scale + self.calls


class Nested(nn.Module):
    def forward(self, pair: Any, table: Any, *, scale: Any, flag: bool = True) -> Any:
        first, rest = pair
        return OrderedDict(a=first + table["left"], b=[rest[0] * scale, {1: table["right"]["deep"]}]), None, 3


class Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        y = torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return y @ y.t()


class Looping(nn.Module):
    def forward(self, x: Any, n: Any) -> Any:
        from torch._higher_order_ops import while_loop

        return while_loop(lambda i, t: i > 0, lambda i, t: (i - 1, t * 2), (n, x))


class Measured(nn.Module):
    """Depends on values: unbacked symbols, assertions and guards on sizes."""

    def forward(self, x: Any, y: Any) -> Any:
        count = y.sum().item()
        torch._check(count > 0)
        torch._check(count < x.shape[0])
        return x.reshape(x.shape[0] // 2, -1)[:count] * (x.shape[0] / 2), x.shape[0] ** 2, max(x.shape[0], 5)


class Modes(nn.Module):
    """Operators that are given text."""

    def forward(self, x: Any) -> Any:
        padded = F.pad(x, (1, 1), mode="reflect")
        divided = torch.div(x, 2, rounding_mode="floor")
        return (
            F.gelu(padded, approximate="tanh"),
            divided,
            torch.einsum("ij,kj->ik", x, x),
            torch.fft.rfft(x, norm="ortho"),
        )


class Quantized(nn.Module):
    def forward(self, x: Any) -> Any:
        import torch.ao.quantization.fx._decomposed

        ops = torch.ops.quantized_decomposed
        q = ops.quantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8)
        return ops.dequantize_per_tensor(q, 0.1, 0, -128, 127, torch.int8)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.b = nn.Linear(3, 3, dtype=torch.bfloat16)
        self.b.weight = self.a.weight
        self.shift = torch.ones(3, dtype=torch.float16)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x)) + self.shift


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout())


_FEW = Dim("batch", min=2, max=20)
_PAIR = ((torch.ones(2), [torch.ones(1)]), {"left": torch.ones(2), "right": {"deep": torch.ones(3)}})
PROGRAMS: dict[str, Callable[[], tuple[Any, list[tuple[Any, ...]]]]] = {
    "an MLP of a dynamic batch": lambda: (
        exported(
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.ones(4, 3),), dynamic_shapes=({0: _FEW},)
        ),
        [(torch.randn(batch, 3),) for batch in (2, 7, 20)],
    ),
    "a conv net": lambda: (exported(conv(), (torch.ones(2, 1, 8, 8),)), [(torch.randn(2, 1, 8, 8),)]),
    "an LSTM on tokens": lambda: (
        exported(Recurrent(), (torch.ones(2, 5, dtype=torch.int64),)),
        [(torch.randint(0, 10, (2, 5)),)],
    ),
    "a transformer": lambda: (
        exported(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (torch.ones(1, 3, 4),)),
        [(torch.randn(1, 3, 4),)],
    ),
    "a buffer that changes": lambda: (exported(Counting(), (torch.ones(2),)), [(torch.ones(2),), (torch.ones(2),)]),
    "nested arguments": lambda: (exported(Nested(), _PAIR, {"scale": torch.ones(1)}), []),
    "branches": lambda: (exported(Branching(), (torch.ones(2, 2),)), [(torch.ones(2, 2),), (-torch.ones(2, 2),)]),
    "a loop": lambda: (exported(Looping(), (torch.ones(2), torch.tensor(3))), [(torch.ones(2), torch.tensor(2))]),
    "values as sizes": lambda: (
        exported(
            Measured(), (torch.ones(8, 4), torch.tensor([1, 1])), dynamic_shapes=({0: 2 * Dim("half", min=2)}, None)
        ),
        [(torch.randn(10, 4), torch.tensor([1, 0]))],
    ),
    "modes": lambda: (exported(Modes(), (torch.ones(3, 4),)), [(torch.randn(3, 4),)]),
    "quantized": lambda: (exported(Quantized(), (torch.ones(3),)), [(torch.randn(3),)]),
    "tied weights in bfloat16": lambda: (
        exported(Tied(), (torch.ones(1, 3, dtype=torch.bfloat16),)),
        [(torch.randn(1, 3, dtype=torch.bfloat16),)],
    ),
    "decomposed": lambda: (
        decomposed(conv(), (torch.ones(2, 1, 8, 8),)),
        [(torch.randn(2, 1, 8, 8),)],
    ),
    "strict": lambda: (exported(nn.Linear(2, 2), (torch.ones(1, 2),), strict=True), [(torch.randn(1, 2),)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_honest_program_gives_the_same_answers(name: str) -> None:
    program, inputs = PROGRAMS[name]()
    data = saved(program)
    ours, theirs = build(data), plain(data)
    given, keywords = program.example_inputs
    for args, kwargs in ((given, keywords), *((args, {}) for args in inputs)):
        assert same(ours(*args, **kwargs), theirs(*args, **kwargs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.code == theirs.code
    guards = [getattr(one, "_guards_fn", None) for one in (ours, theirs)]
    assert len({one.forward.__code__.co_code for one in guards if one is not None}) <= 1
    assert not holdfast.scan(io.BytesIO(data)).is_dangerous


def test_sizes_that_were_not_exported_are_still_refused_by_the_guards() -> None:
    program, _ = PROGRAMS["an MLP of a dynamic batch"]()
    module = build(saved(program))
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.ones(21, 3))


def test_it_learns_as_torch_lets_it() -> None:
    program, _ = PROGRAMS["strict"]()
    module = build(saved(program))
    module(torch.ones(1, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


# -- ways of saving


def test_every_way_of_saving(tmp_path: Path) -> None:
    from torch.export.pt2_archive._package import package_pt2

    program, inputs = PROGRAMS["a conv net"]()
    torch.export.save(program, tmp_path / "plain.pt2")
    torch.export.save(program, tmp_path / "extra.pt2", extra_files={"notes.txt": "run me"})
    torch.export.save(program, tmp_path / "opset.pt2", opset_version={"aten": 10})
    torch.export.save(program, str(tmp_path / "protocol.pt2"), pickle_protocol=2)
    package_pt2(str(tmp_path / "named.pt2"), exported_programs={"classifier": program})
    wanted = program.module()(*inputs[0])
    for path in sorted(tmp_path.glob("*.pt2")):
        for f in (path, str(path), io.BytesIO(path.read_bytes())):
            assert torch.equal(holdfast.build(f)(*inputs[0]), wanted), path


def test_an_archive_that_was_zipped_again(tmp_path: Path) -> None:
    program, inputs = PROGRAMS["a conv net"]()
    data = saved(program)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(tmp_path / "again.pt2", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in sorted(old.namelist()):
            new.writestr(name, old.read(name))
    assert torch.equal(holdfast.build(tmp_path / "again.pt2")(*inputs[0]), program.module()(*inputs[0]))


def test_a_program_without_sample_inputs() -> None:
    program, inputs = PROGRAMS["a conv net"]()
    program._example_inputs = None
    assert torch.equal(build(saved(program))(*inputs[0]), program.module()(*inputs[0]))


def test_a_weight_that_is_pickled_but_plain() -> None:
    """Torch pickles weights of classes of their own; what is a plain tensor after all is read and saved again."""
    program, inputs = PROGRAMS["strict"]()

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return content
        config = json.loads(content)
        config["config"]["bias"].update(use_pickle=True, path_name="weight_7")
        return json.dumps(config).encode()

    pickled = io.BytesIO()
    torch.save(program.state_dict["bias"], pickled)
    data = rewritten(saved(program), change, weight_7=pickled.getvalue())
    assert torch.equal(build(data)(*inputs[0]), program.module()(*inputs[0]))


# -- what is refused


def test_a_class_of_ones_own_in_the_results() -> None:
    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            return Point(x, x + 1)

    data = saved(exported(Net(), (torch.ones(1),)))
    with pytest.raises(RefusedFile, match=r"a tree of arguments holds a collections\.namedtuple"):
        build(data)


def test_an_operator_of_ones_own() -> None:
    @torch.library.custom_op("holdfast_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            return twice(x)

    data = saved(exported(Net(), (torch.ones(1),)))
    with pytest.raises(RefusedFile, match=r"it calls torch\.ops\.holdfast_tests\.twice\.default, which is not known"):
        build(data)


def test_the_mode_is_the_one_of_the_export(caplog: pytest.LogCaptureFixture) -> None:
    program, _ = PROGRAMS["a conv net"]()
    with pytest.raises(
        ArgumentError, match=r'is in the mode in which it was exported and can\'t be put into mode="train"'
    ):
        build(saved(program), mode="train")
    assert "training mode" not in caplog.text
    with caplog.at_level(logging.WARNING, "holdfast"):
        learning = torch.export.export(nn.Dropout().train(), (torch.ones(3),))
        build(saved(learning))
    assert "was exported in training mode (torch.ops.aten.dropout.default)" in caplog.text


def test_where_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    program, inputs = PROGRAMS["a conv net"]()
    data = saved(program)
    wanted = program.module()(*inputs[0])
    for location in ("cpu", torch.device("cpu"), "auto"):
        module = build(data, location)
        device = next(module.parameters()).device
        assert torch.allclose(module(inputs[0][0].to(device)).cpu(), wanted, atol=1e-4)
    with pytest.raises(DeviceUnavailable, match="map_location asks for cuda:99"):
        build(data, "cuda:99")
    with pytest.raises(ArgumentError, match="a module lives in one place"):
        build(data, {"cpu": "cpu"})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="here is an accelerator")
def test_a_program_of_a_device_that_is_not_here_goes_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    program, inputs = PROGRAMS["a conv net"]()
    cpu, cuda = b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}'
    data = rewritten(saved(program), lambda name, content: content.replace(cpu, cuda))
    module = build(data)
    assert "tensors were saved on cuda:0, which is not here: loaded on the CPU" in caplog.text
    assert torch.equal(module(*inputs[0]), program.module()(*inputs[0]))


@pytest.mark.needs_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_program_moves_between_devices() -> None:
    for name in ("a conv net", "an LSTM on tokens", "an MLP of a dynamic batch"):
        program, inputs = PROGRAMS[name]()
        there = build(saved(program), "cuda")
        assert all(value.is_cuda for value in there.state_dict().values())
        for args in inputs:
            moved = there(*(one.cuda() for one in args))
            for ours, theirs in zip(
                _pytree.tree_leaves(moved), _pytree.tree_leaves(program.module()(*args)), strict=True
            ):
                assert ours.is_cuda
                assert torch.allclose(ours.cpu(), theirs, atol=1e-2)
    net = nn.Linear(2, 2).cuda()
    back = build(saved(exported(net, (torch.ones(1, 2, device="cuda"),))), "cpu")
    assert not any(value.is_cuda for value in back.state_dict().values())
    assert torch.allclose(back(torch.ones(1, 2)), net(torch.ones(1, 2).cuda()).cpu(), atol=1e-2)


def test_with_a_factory_its_weights_are_restored(tmp_path: Path) -> None:
    net = Recurrent()
    torch.export.save(exported(net, (torch.ones(2, 5, dtype=torch.int64),)), tmp_path / "net.pt2")
    built = holdfast.build(tmp_path / "net.pt2", factory=Recurrent, mode="train")
    assert isinstance(built, Recurrent)
    assert built.training
    assert all(torch.equal(built.state_dict()[name], value) for name, value in net.state_dict().items())
    with pytest.raises(MismatchError):
        holdfast.build(tmp_path / "net.pt2", factory=lambda: nn.Linear(1, 1))
