"""A probe: an example input and what the model answered, kept beside its weights and asked again after loading."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from holdfast.errors import ArgumentError, CorruptFile

_LIMIT = 1024 * 1024
"""Bytes that the example input, and the answer, may each have: they are kept in the record, not as tensors."""


def make_probe(module: nn.Module, example: Any) -> dict[str, Any]:
    """Runs a module on an example, in eval mode and without gradients, and describes its answer as plain values.

    Args:
        module: the model; its mode and the random state are left as they were.
        example: a tensor, or a tuple of positional arguments that are tensors or plain values.

    Raises:
        ArgumentError: the example is larger than 1 MiB, or the model does not take it.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    packed = [_pack(value) if isinstance(value, torch.Tensor) else value for value in arguments]
    size = sum(len(value["data"]) for value in packed if isinstance(value, dict))
    if size > _LIMIT:
        raise ArgumentError(f"probe= is {size:,} bytes of tensors; give a small example, at most {_LIMIT:,}")
    try:
        answers = _answers(module, arguments)
    except Exception as reason:  # whatever the model's forward raises
        raise ArgumentError(f"probe=: the model does not take it: {type(reason).__name__}: {reason}") from reason
    probe: dict[str, Any] = {
        "inputs": packed,
        "digest": _digest(answers),
        "summary": [_summary(one) for one in answers],
    }
    if sum(one.nbytes for one in answers) <= _LIMIT:
        probe["outputs"] = [_pack(one) for one in answers]
    return probe


def probe_inputs(probe: Any, file: str) -> tuple[Any, ...]:
    """The example of a probe in a file, as positional arguments.

    Raises:
        CorruptFile: the record is damaged.
    """
    try:
        return tuple(_unpack(value) if isinstance(value, dict) else value for value in probe["inputs"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as reason:
        raise CorruptFile(f"`{file}`: its probe is damaged: {type(reason).__name__}: {reason}", file=file) from reason


def replay(module: nn.Module, probe: Any) -> str:
    """Asks the model again; says "same answers", or how far off they are. Its mode is left as it was."""
    try:
        arguments = [_unpack(value) if isinstance(value, dict) else value for value in probe["inputs"]]
        before = [_unpack(value) for value in probe.get("outputs", ())]
        digest, summary = str(probe["digest"]), probe["summary"]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as reason:
        return f"the probe in the file is damaged and was not replayed: {type(reason).__name__}: {reason}"
    try:
        answers = _answers(module, arguments)
    except Exception as reason:  # whatever the model's forward raises: the load itself went well
        return f"the probe can't be replayed: {type(reason).__name__}: {reason}"
    if _digest(answers) == digest:
        return "same answers to the probe as when it was saved"
    if len(before) != len(answers):
        return f"OTHER answers to the probe than when it was saved: {_told(answers)}, before {summary}"
    if any(old.shape != new.shape for old, new in zip(before, answers, strict=True)):
        return "OTHER answers to the probe than when it was saved: of another shape"
    off = max((_distance(old, new) for old, new in zip(before, answers, strict=True)), default=0.0)
    largest = max((float(old.to(torch.complex128).abs().max()) for old in before if old.numel()), default=0.0)
    if off <= 1e-5 * max(largest, 1.0):
        return f"same answers to the probe as when it was saved, to {off:.1e} (another machine or torch)"
    return (
        f"OTHER answers to the probe than when it was saved: up to {off:.3g} off, where answers reach {largest:.3g}: "
        "was the model's code changed, or its weights damaged?"
    )


def _answers(module: nn.Module, arguments: Any) -> list[torch.Tensor]:
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    given = [value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments]
    with as_in_eval(module), torch.no_grad(), torch.random.fork_rng():
        answer = module(*given)
    return [tensor.detach().cpu() for tensor in _tensors(answer)]


@contextlib.contextmanager
def as_in_eval(module: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode for a while; then each in its own mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _tensors(answer: Any) -> Iterator[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        yield answer
    elif isinstance(answer, dict):
        for value in answer.values():
            yield from _tensors(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            yield from _tensors(value)


def _pack(tensor: torch.Tensor) -> dict[str, Any]:
    plain = tensor.detach().cpu().contiguous()
    data = bytes(plain.reshape(-1).view(torch.uint8).tolist())
    return {"dtype": str(plain.dtype).removeprefix("torch."), "shape": list(plain.shape), "data": data}


def _unpack(packed: dict[str, Any]) -> torch.Tensor:
    """A tensor of a record. It comes from a file: a shape without its bytes must not ask for memory."""
    dtype = getattr(torch, packed["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {packed['dtype']!r}")
    if not packed["data"]:
        return torch.empty(0, dtype=dtype).reshape(packed["shape"])
    return torch.tensor(list(packed["data"]), dtype=torch.uint8).view(dtype).reshape(packed["shape"])


def _digest(answers: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for one in answers:
        packed = _pack(one)
        digest.update(f"{packed['dtype']}{packed['shape']}".encode() + packed["data"])
    return digest.hexdigest()


def _summary(answer: torch.Tensor) -> dict[str, Any]:
    values = answer.double() if not answer.is_complex() else answer.abs().double()
    if not values.numel():
        return {"shape": list(answer.shape)}
    found = {"mean": values.mean(), "min": values.min(), "max": values.max()}
    return {"shape": list(answer.shape), **{name: float(value) for name, value in found.items()}}


def _told(answers: list[torch.Tensor]) -> list[dict[str, Any]]:
    return [_summary(one) for one in answers]


def _distance(old: torch.Tensor, new: torch.Tensor) -> float:
    if not old.numel():
        return 0.0
    off = float((old.to(torch.complex128) - new.to(torch.complex128)).abs().max())
    return math.inf if math.isnan(off) else off
