"""Pairs of name lists, a file's and a model's, with what is truly the same in both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from tests.policy import architectures as arch
from tests.policy.architectures import Dialect, Named, Net, joined, relabelled, spell

WRAPPERS = {
    "parallel": "module.{}",
    "compiled": "_orig_mod.{}",
    "both": "module._orig_mod.{}",
    "lightning": "model.{}",
    "lightning_net": "net.{}",
    "timm_backbone": "backbone.{}",
    "encoder": "encoder.{}",
    "deep": "module.model.backbone.{}",
    "detector": "backbone.body.{}",
    "detr": "model.backbone.0.body.{}",
    "huggingface": "bert.{}",
    "mmcls": "module.backbone.net.{}",
    "metachars": "net[0]+(x).{}",
}


@dataclass(frozen=True)
class Pair:
    """A file and a model.

    Attributes:
        name: what it is.
        stored: the file.
        live: the model.
    """

    name: str
    stored: Named
    live: Named

    @property
    def truth(self) -> dict[str, str]:
        """Stored name -> live name of all that is the same and has the same shape."""
        by_id = {key: name for name, key in self.live.ids.items()}
        found = {name: by_id[key] for name, key in self.stored.ids.items() if key in by_id}
        return {name: other for name, other in found.items() if self.stored.shapes[name] == self.live.shapes[other]}


def dialects(family: str, net: Net, table: Mapping[str, Dialect], other: Net | None = None) -> Iterator[Pair]:
    """Every dialect of a table into every other one; ``other`` is the model, when it differs from the file."""
    for one, two in permutations(table, 2):
        yield Pair(f"{family} {one} -> {two}", spell(net, table[one]), spell(other or net, table[two]))


def wrapped(family: str, net: Net, dialect: Dialect, other: Net | None = None) -> Iterator[Pair]:
    """A file written inside each wrapper, and the way back."""
    for name, around in WRAPPERS.items():
        file, model = spell(net, dialect, around), spell(other or net, dialect)
        if name in ("parallel", "compiled", "both"):
            continue
        yield Pair(f"{family} in {name}", file, model)
        yield Pair(f"{family} into {name}", spell(net, dialect), spell(other or net, dialect, around))


def old_norms(part: Named) -> Named:
    """As TensorFlow and early BERT files call them: gamma and beta."""
    new = {
        name: re.sub(r"(norm[^.]*|bn\d|ln_\d)\.(weight|bias)$", _old_leaf, name, flags=re.IGNORECASE)
        for name in part.ids
    }
    return Named(
        {new[name]: key for name, key in part.ids.items()}, {new[name]: shape for name, shape in part.shapes.items()}
    )


def _old_leaf(found: re.Match[str]) -> str:
    return f"{found[1]}.{'gamma' if found[2] == 'weight' else 'beta'}"


def without(part: Named, pattern: str) -> Named:
    """The names that do not fit."""
    kept = {name: key for name, key in part.ids.items() if not re.search(pattern, name)}
    return Named(kept, {name: part.shapes[name] for name in kept})


def extra(**shapes: tuple[int, ...]) -> Named:
    """Further tensors that only one side has."""
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return Named({name: f"extra {name}" for name in names}, names)


def positive() -> list[Pair]:
    """Pairs in which much is the same under other names."""
    r18, r50 = arch.resnet((2, 2, 2, 2), wide=False), arch.resnet((3, 4, 6, 3), wide=True)
    tv, timm, hf = arch.RESNETS["torchvision"], arch.VITS["timm"], arch.BERTS["transformers"]
    pairs = [
        *dialects("resnet18", r18, arch.RESNETS),
        *dialects("resnet50", r50, arch.RESNETS, arch.resnet((3, 4, 6, 3), wide=True, classes=10)),
        *dialects("vit", arch.vit(), arch.VITS),
        *dialects("small vit", arch.vit(size=384), arch.VITS, arch.vit(size=384, classes=37)),
        *dialects("split vit", arch.vit(fused=False, classes=0), arch.SPLIT_VITS),
        *dialects("bert", arch.bert(), arch.BERTS, arch.bert(labels=2)),
        *dialects("shallow bert", arch.bert(), arch.BERTS, arch.bert(layers=6)),
        *dialects("gpt", arch.gpt(), arch.GPTS),
        *dialects("split gpt", arch.gpt(fused=False), arch.SPLIT_GPTS),
        *dialects("llama", arch.llama(), arch.LLAMAS),
        *dialects("llama without groups", arch.llama(groups=1), arch.LLAMAS),
        *dialects("convnext", arch.convnext(), arch.CONVNEXTS),
        *dialects("mobilenet", arch.mobilenet(), arch.MOBILENETS, arch.mobilenet(classes=10)),
        *dialects("unet", arch.unet(), arch.UNETS),
        *dialects("mlp", arch.mlp(), arch.MLPS),
        *dialects("lenet", arch.lenet(), arch.LENETS),
        *dialects("lstm", arch.lstm(), arch.LSTMS),
        *wrapped("resnet18", r18, tv, arch.resnet((2, 2, 2, 2), wide=False, classes=10)),
        *wrapped("vit", arch.vit(), timm),
        *wrapped("bert", arch.bert(), hf, arch.bert(labels=3)),
        *wrapped("gpt", arch.gpt(), arch.GPTS["gpt2"]),
        *wrapped("unet", arch.unet(), arch.UNETS["milesial"]),
    ]
    for depth, norms in ((11, False), (13, False), (16, False), (11, True), (16, True)):
        kinds = {kind: arch.vgg_dialect(kind, depth, norms) for kind in ("torchvision", "caffe", "own")}
        pairs += dialects(f"vgg{depth}{'bn' * norms}", arch.vgg(depth, norms=norms), kinds, arch.vgg(depth, 10, norms))
    return pairs + _trained(r18, r50)


def _trained(r18: Net, r50: Net) -> list[Pair]:
    """What training programs leave: copies, old spellings, parts that are frozen or missing."""
    tv, timm, hf = arch.RESNETS["torchvision"], arch.VITS["timm"], arch.BERTS["transformers"]
    body = spell(arch.resnet((3, 4, 6, 3), wide=True, classes=0), tv)
    queue = extra(module__queue=(128, 65536), module__queue_ptr=(1,))
    moco = joined(
        spell(r50, tv, "module.encoder_q.{}"), relabelled(spell(r50, tv, "module.encoder_k.{}"), "copy"), queue
    )
    vit = arch.vit(size=384, classes=0)
    dino = joined(
        relabelled(spell(vit, timm, "student.backbone.{}"), "copy"),
        spell(vit, timm, "teacher.backbone.{}"),
        extra(student__head__mlp__0__weight=(2048, 384), teacher__head__mlp__0__weight=(2048, 384)),
    )
    detector = joined(
        relabelled(extra(transformer__encoder__layers__0__linear1__weight=(2048, 256)), "detr"),
        spell(arch.resnet((3, 4, 6, 3), wide=True, classes=0), tv, "backbone.0.body.{}"),
        relabelled(extra(input_proj__weight=(256, 2048, 1, 1), class_embed__weight=(92, 256)), "detr"),
    )
    mask = joined(
        spell(arch.resnet((3, 4, 6, 3), wide=True, classes=0), tv, "backbone.{}"),
        extra(classifier__0__weight=(512, 2048, 3, 3), classifier__4__weight=(21, 512, 1, 1)),
    )
    bert, labelled = spell(arch.bert(), hf), arch.bert(labels=2)
    pairs = [
        Pair("moco", moco, spell(r50, tv)),
        Pair("moco, body alone", moco, body),
        Pair("moco into a backbone", moco, spell(r50, tv, "backbone.{}")),
        Pair("dino", dino, spell(arch.vit(size=384, classes=10), timm)),
        Pair("dino into a backbone", dino, spell(vit, timm, "backbone.{}")),
        Pair("classifier into detector", spell(r50, tv), detector),
        Pair("detector into classifier", detector, spell(r50, tv)),
        Pair("classifier into segmentation", spell(r50, tv), mask),
        Pair("segmentation into classifier", mask, body),
        Pair("moco into segmentation", moco, mask),
        Pair("detector into segmentation", detector, mask),
        Pair("detectron into segmentation", spell(r50, arch.RESNETS["detectron"], "backbone.bottom_up.{}"), mask),
        Pair("simclr", spell(r50, tv, "module.convnet.{}"), body),
        Pair("gamma and beta, wrapped", old_norms(spell(arch.bert(), hf, "bert.{}")), spell(labelled, hf)),
        Pair("gamma and beta into wrapped", old_norms(bert), spell(labelled, hf, "bert.{}")),
        Pair("gamma and beta, resnet", old_norms(spell(r18, tv, "net.{}")), spell(r18, tv)),
        Pair("first layer missing", without(spell(r18, tv, "model.{}"), r"\.conv1\.weight$"), spell(r18, tv)),
        Pair("frozen body left out", without(spell(arch.bert(), hf, "model.{}"), r"layer\.[0-5]\."), bert),
        Pair("shallower resnet", spell(arch.resnet((3, 4, 23, 3), True), tv, "backbone.{}"), spell(r50, tv)),
        Pair("deeper vit", spell(arch.vit(), timm, "model.{}"), spell(arch.vit(layers=16), timm)),
        Pair("other patch", spell(arch.vit(patch=32), timm, "model.{}"), spell(arch.vit(), timm)),
        Pair("other channels", spell(r18, tv, "net.{}"), spell(arch.resnet((2, 2, 2, 2), False, channels=1), tv)),
        Pair("old batch norm", without(spell(r18, tv, "model.{}"), "num_batches"), spell(r18, tv)),
        Pair("roberta prefix", spell(arch.bert(), hf, "bert.{}"), spell(labelled, hf, "roberta.{}")),
        Pair("fairseq prefix", spell(arch.bert(), arch.BERTS["fairseq"], "encoder.{}"), spell(labelled, hf)),
    ]
    fused = spell(arch.vit(), arch.VITS["timm"], "backbone.{}")
    pairs.append(Pair("timm in a backbone into torchvision", fused, spell(arch.vit(), arch.VITS["torchvision"])))
    for dialect in ("detectron", "own", "transformers"):
        file = spell(r50, arch.RESNETS[dialect], "module.{}")
        pairs.append(Pair(f"parallel {dialect} resnet", file, spell(r50, tv)))
        pairs.append(Pair(f"{dialect} resnet into lightning", file, spell(r50, tv, "model.{}")))
    return pairs


def negative() -> list[Pair]:
    """Pairs in which nothing, or only a part, is the same, though shapes or words agree."""
    r18, r50 = arch.resnet((2, 2, 2, 2), wide=False), arch.resnet((3, 4, 6, 3), wide=True)
    tv, timm = arch.RESNETS["torchvision"], arch.VITS["timm"]
    pairs = [
        Pair(f"fused {one} -> split {two}", spell(arch.vit(), arch.VITS[one]), _split(two))
        for one in arch.VITS
        for two in arch.SPLIT_VITS
    ]
    pairs += [Pair(f"split {two} -> fused {one}", _split(two), spell(arch.vit(), arch.VITS[one]))
              for one in arch.VITS for two in arch.SPLIT_VITS]  # fmt: skip
    turned = arch.transposed(spell(arch.gpt(), arch.GPTS["gpt2"]))
    pairs += [
        Pair(f"Conv1D -> Linear {two}", turned, spell(arch.gpt(), arch.GPTS[two])) for two in ("nano", "own", "rasbt")
    ]
    pairs += [Pair("Linear -> Conv1D", spell(arch.gpt(), arch.GPTS["nano"]), turned)]
    for family, one, two, table in (
        ("vit", arch.vit(), arch.vit(size=384), arch.VITS),
        ("llama", arch.llama(), arch.llama(size=512, hidden=1408), arch.LLAMAS),
        ("resnet", r18, arch.resnet((2, 2, 2, 2), wide=False, width=32), arch.RESNETS),
    ):
        pairs += [replace(p, name=f"other width: {p.name}") for p in list(dialects(family, one, table, two))[:4]]
    others = [spell(r50, tv), spell(arch.vgg(16), arch.vgg_dialect("torchvision", 16)), spell(arch.vit(), timm),
              spell(arch.gpt(), arch.GPTS["nano"]), spell(arch.lstm(), arch.LSTMS["plain"]),
              spell(arch.unet(), arch.UNETS["milesial"]), spell(arch.mobilenet(), arch.MOBILENETS["torchvision"]),
              spell(arch.convnext(), arch.CONVNEXTS["timm"])]  # fmt: skip
    for one, two in permutations(range(len(others)), 2):
        if {one, two} == {2, 3}:
            continue  # the blocks of a ViT and of a GPT are the same modules, and names say so
        pairs.append(Pair(f"unrelated {one} -> {two}", relabelled(others[one], "a"), others[two]))
    return pairs + _same_shapes(r18)


def _split(dialect: str) -> Named:
    return spell(arch.vit(fused=False), arch.SPLIT_VITS[dialect])


def _same_shapes(r18: Net) -> list[Pair]:
    """Equal shapes, other meaning."""
    tv = arch.RESNETS["torchvision"]
    rgb, depth = spell(r18, tv, "rgb.{}"), relabelled(spell(r18, tv, "depth.{}"), "depth")
    flow = relabelled(spell(r18, tv, "flow.{}"), "flow")
    two = joined(relabelled(spell(r18, tv, "net_a.{}"), "a"), relabelled(spell(r18, tv, "net_b.{}"), "b"))
    encoder = spell(arch.bert(), arch.BERTS["own"], "encoder.{}")
    square = [(f"{name}.weight", (256, 256)) for name in ("alpha", "omega", "left", "right")]
    shuffled = [(f"{name}.weight", (256, 256)) for name in ("north", "south", "east", "west")]
    keys = [(f"layers.{n}.attn.{part}.weight", (512, 512)) for n in range(6) for part in "qkvo"]
    odd = [(f"layers.{n}.attention.{part}.weight", (512, 512)) for n in range(6) for part in ("a", "b", "c", "d")]
    plain = table_of(square, "file"), table_of(shuffled, "model")
    return [
        Pair("rgb and depth -> rgb and flow", joined(rgb, depth), joined(rgb, flow)),
        Pair("depth -> flow", depth, flow),
        Pair("one of two towers", two, spell(r18, tv)),
        Pair("into one of two towers", spell(r18, tv), two),
        Pair("encoder -> decoder", encoder, relabelled(spell(arch.bert(), arch.BERTS["own"], "decoder.{}"), "d")),
        Pair("squares under other words", *plain),
        Pair("q k v o -> a b c d", table_of(keys, "file"), table_of(odd, "model")),
        Pair("actor -> critic", _heads("actor", "file"), _heads("critic", "model")),
        Pair(
            "embedding -> head",
            table_of([("embedding.weight", (5000, 64)), ("a.weight", (64, 64))], "file"),
            table_of([("b.weight", (64, 64)), ("head.weight", (5000, 64))], "model"),
        ),
        Pair(
            "mu -> logvar",
            table_of(arch.linear("fc_mu", 20, 400), "file"),
            table_of(arch.linear("fc_logvar", 20, 400), "model"),
        ),
        Pair("nothing", Named({}, {}), spell(r18, tv)),
        Pair("into nothing", spell(r18, tv), Named({}, {})),
    ]


def _heads(name: str, mark: str) -> Named:
    return table_of([row for n, size in enumerate((64, 64, 4)) for row in arch.linear(f"{name}.{n}", size, 64)], mark)


def table_of(net: Net, mark: str) -> Named:
    """A list of names that mean something only to themselves."""
    return relabelled(spell(net, lambda key: key), mark)
