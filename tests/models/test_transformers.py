"""Real architectures, tiny and with random weights: GPT-2, BERT, ViT, ResNet and Llama as transformers builds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, MismatchError

_TEXT = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": _TEXT | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "BertModel": _TEXT | _BLOCKS | {"max_position_embeddings": 16},
    "BertForSequenceClassification": _TEXT | _BLOCKS | {"max_position_embeddings": 16},
    "ViTForImageClassification": _BLOCKS | {"image_size": 16, "patch_size": 8},
    "ResNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "LlamaForCausalLM": _TEXT | _BLOCKS | {"num_key_value_heads": 1, "tie_word_embeddings": False},
}
Make = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    """The library, offline and quiet; its import takes seconds, so it happens once and only here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        module = pytest.importorskip("transformers")
        module.utils.logging.disable_progress_bar()
        yield module


@pytest.fixture
def make(transformers: ModuleType) -> Make:
    """Builds a model by its class's name, with weights drawn from ``seed``."""

    def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
        torch.manual_seed(seed)
        cls = getattr(transformers, name)
        model: nn.Module = cls(cls.config_class(**MODELS[name] | changes))
        return model

    return build


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def question(model: nn.Module) -> dict[str, torch.Tensor]:
    if getattr(model, "main_input_name", "") == "pixel_values":
        size = getattr(model.config, "image_size", 32)
        return {"pixel_values": torch.linspace(0, 1, 3 * size * size).reshape(1, 3, size, size)}
    return {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}


def answer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        given: torch.Tensor = model.eval()(**question(model))[0]
    return given


def suggested(error: pytest.ExceptionInfo[MismatchError]) -> Any:
    """The policy that an error proposes, as someone who pastes it gets it."""
    (found,) = re.findall(r"Try holdfast\.(Warm\(.*\))$", str(error.value))
    return eval(found, {"Warm": holdfast.Warm})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_comes_back_bit_for_bit(name: str, suffix: str, make: Make, tmp_path: Path) -> None:
    model, other = make(name), make(name, seed=1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.25)  # no weight or running average is what a new model begins with
    assert not same(model, other)
    holdfast.save(model, tmp_path / f"m{suffix}")
    report = holdfast.restore(tmp_path / f"m{suffix}", model=other, mode="eval")
    assert report.is_exact
    assert report.coverage == 1.0
    assert same(model, other)
    assert torch.equal(answer(model), answer(other))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_again_from_the_config_that_it_carries(
    name: str, make: Make, transformers: ModuleType, tmp_path: Path
) -> None:
    model = make(name)
    holdfast.save({"model": model, "epoch": 1}, tmp_path / "m.pt")
    built = holdfast.build(tmp_path / "m.pt", factory=getattr(transformers, name))
    assert type(built) is type(model)
    assert built.config.to_dict() == model.config.to_dict()
    assert not built.training
    assert same(built, model)


def test_a_trusted_class_or_a_function_of_the_config_builds_it_too(
    make: Make, transformers: ModuleType, tmp_path: Path
) -> None:
    model = make("BertModel")
    holdfast.save(model, tmp_path / "m.safetensors")
    cls = transformers.BertModel
    assert same(holdfast.build(tmp_path / "m.safetensors", trusted={f"{cls.__module__}.{cls.__qualname__}"}), model)

    def create(config: dict[str, Any]) -> nn.Module:
        return cls(transformers.BertConfig(**config))

    assert same(holdfast.build(tmp_path / "m.safetensors", factory=create), model)


def test_a_tied_head_is_stored_once_and_tied_again(make: Make, tmp_path: Path) -> None:
    model = make("GPT2LMHeadModel")
    assert model.lm_head.weight is model.transformer.wte.weight
    holdfast.save(model, tmp_path / "m.safetensors")
    names = set(model.state_dict())
    assert names - set(load_file(tmp_path / "m.safetensors")) == {"lm_head.weight"}
    holdfast.save(model, tmp_path / "m.pt")
    saved = torch.load(tmp_path / "m.pt")
    assert saved["lm_head.weight"].data_ptr() == saved["transformer.wte.weight"].data_ptr()
    tree = holdfast.load(tmp_path / "m.safetensors")
    assert set(tree) == names
    assert tree["lm_head.weight"].data_ptr() == tree["transformer.wte.weight"].data_ptr()
    for file in ("m.pt", "m.safetensors"):
        other = make("GPT2LMHeadModel", seed=1)
        holdfast.restore(tmp_path / file, model=other)
        assert other.lm_head.weight is other.transformer.wte.weight
        assert same(model, other)


def test_wrapped_and_compiled_models_exchange_files_with_bare_ones(make: Make, tmp_path: Path) -> None:
    model = make("LlamaForCausalLM")
    wrapped = torch.nn.DataParallel(torch.compile(model, backend="eager"))
    holdfast.save(wrapped, tmp_path / "ours.pt")
    assert set(torch.load(tmp_path / "ours.pt")) == set(model.state_dict())
    torch.save(wrapped.state_dict(), tmp_path / "theirs.pt")
    assert all(name.startswith("module._orig_mod.") for name in torch.load(tmp_path / "theirs.pt"))
    for file in ("ours.pt", "theirs.pt"):
        bare, again = make("LlamaForCausalLM", seed=1), make("LlamaForCausalLM", seed=2)
        assert holdfast.restore(tmp_path / file, model=bare).is_exact
        holdfast.restore(tmp_path / file, model=torch.compile(nn.DataParallel(again), backend="eager"))
        assert same(bare, model)
        assert same(again, model)


def test_a_head_of_another_size_is_left_as_it_is_and_named(make: Make, tmp_path: Path) -> None:
    holdfast.save(make("ViTForImageClassification"), tmp_path / "two.safetensors")
    model = make("ViTForImageClassification", seed=1, num_labels=5)
    head = holdfast.snapshot(model.classifier)
    before = holdfast.snapshot(model)
    with pytest.raises(
        MismatchError, match=r"`classifier.weight`: file has \(2, 16\) float32, object wants \(5, 16\) float32"
    ):
        holdfast.restore(tmp_path / "two.safetensors", model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = holdfast.restore(tmp_path / "two.safetensors", model=model, match=holdfast.Warm(min_coverage=0.9))
    assert [item.name for item in report.mismatched] == ["model.classifier.weight", "model.classifier.bias"]
    assert same(model.vit, make("ViTForImageClassification").vit)
    assert all(torch.equal(value, head[name]) for name, value in model.classifier.state_dict().items())


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("BertForSequenceClassification", "bert"),
        ("GPT2LMHeadModel", "transformer"),
        ("ViTForImageClassification", "vit"),
    ],
)
def test_a_backbone_fits_a_model_with_a_head_by_the_rename_that_the_refusal_proposes(
    name: str, inside: str, make: Make, tmp_path: Path
) -> None:
    whole, live = make(name), make(name, seed=1)
    backbone = whole.get_submodule(inside)
    holdfast.save(backbone, tmp_path / "backbone.pt")
    with pytest.raises(MismatchError, match=r"nothing was changed: .*Try holdfast.Warm\(rename=") as refused:
        holdfast.restore(tmp_path / "backbone.pt", model=live)
    policy = suggested(refused)
    assert policy.rename == {"^": f"{inside}."}
    report = holdfast.restore(tmp_path / "backbone.pt", model=live, match=policy)
    assert same(live.get_submodule(inside), backbone)
    assert not report.unexpected
    assert holdfast.restore(tmp_path / "backbone.pt", model=live, match=holdfast.Warm(add_prefix=inside)).loaded


def test_a_head_is_cut_off_by_the_rename_that_the_refusal_proposes(make: Make, tmp_path: Path) -> None:
    whole, live = make("BertForSequenceClassification"), make("BertModel", seed=1)
    holdfast.save(whole, tmp_path / "whole.safetensors")
    with pytest.raises(MismatchError, match=r"Try holdfast.Warm") as refused:
        holdfast.restore(tmp_path / "whole.safetensors", model=live)
    report = holdfast.restore(tmp_path / "whole.safetensors", model=live, match=suggested(refused))
    assert same(live, whole.bert)
    assert report.unexpected == ["model.classifier.weight", "model.classifier.bias"]
    assert report.coverage == 1.0


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "ResNetForImageClassification"])
def test_a_folder_of_save_pretrained_whole_and_in_shards(name: str, make: Make, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for folder in ("one", "many"):
        other = make(name, seed=1)
        report = holdfast.restore(tmp_path / folder, model=other)
        assert same(model, other)
        assert report.is_exact
        assert report.tied == (["model.lm_head.weight"] if name == "GPT2LMHeadModel" else [])
        tree = holdfast.load(tmp_path / folder)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in tree.items())


def test_a_shard_cut_short_changes_nothing(make: Make, tmp_path: Path) -> None:
    make("BertModel").save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / max(index["weight_map"].values())
    shard.write_bytes(shard.read_bytes()[:-3])
    live = make("BertModel", seed=1)
    with pytest.raises(CorruptFile, match=re.escape(shard.name)):
        holdfast.restore(tmp_path, model=live)
    assert same(live, make("BertModel", seed=1))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "ResNetForImageClassification"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_from_pretrained_reads_what_holdfast_wrote(name: str, file: str, make: Make, tmp_path: Path) -> None:
    model = make(name)
    model.config.save_pretrained(tmp_path)
    holdfast.save(model, tmp_path / file)
    theirs = type(model).from_pretrained(tmp_path)
    assert same(theirs, model)
    if name == "GPT2LMHeadModel":
        assert theirs.lm_head.weight is theirs.transformer.wte.weight


def test_a_probe_tells_edited_weights_from_the_same_model(make: Make, tmp_path: Path) -> None:
    model = make("GPT2LMHeadModel").eval()
    holdfast.save(model, tmp_path / "m.pt", probe=question(model)["input_ids"])
    report = holdfast.restore(tmp_path / "m.pt", model=make("GPT2LMHeadModel", seed=1), mode="eval")
    assert any("same answers" in note for note in report.notes)
    other = make("GPT2LMHeadModel", seed=1, activation_function="relu")
    report = holdfast.restore(tmp_path / "m.pt", model=other, mode="eval")
    assert not any("same answers" in note for note in report.notes)


def test_training_goes_on_where_it_stopped(make: Make, run_dir: Path) -> None:
    batches = [torch.arange(5 * i, 5 * i + 5).reshape(1, 5) for i in range(6)]

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make("GPT2LMHeadModel")  # in train mode: its dropout draws from torch's generator
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
        model.train()(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, optimizer = start()
    for batch in batches:
        step(straight, optimizer, batch)
    for first in (True, False):
        model, optimizer = start()
        with holdfast.Run(run_dir, model=model, optimizer=optimizer) as run:
            for _ in run.epochs(1):
                assert run.position.batch == (0 if first else 4)
                for batch in run.batches(batches):
                    step(model, optimizer, batch)
                    if first and run.position.batch == 3:  # inside the fourth item
                        run.save()
                        break
                if first:
                    break
    assert model.lm_head.weight is model.transformer.wte.weight
    assert same(model, straight)
