"""Lists of tensor names as real models have them, each tensor with an id of what it is.

A network is built once, as ids and shapes; a dialect spells the ids as one library does. Two dialects of one network
are then a pair of name lists whose true pairing is known: the tensors with the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

Shape = tuple[int, ...]
Net = list[tuple[str, Shape]]
"""Ids, ending in the leaf, with shapes: ``layer.0.q.weight``."""
Dialect = Callable[[str], str]


@dataclass(frozen=True)
class Named:
    """One name list.

    Attributes:
        ids: name -> id, in order.
        shapes: name -> shape.
    """

    ids: dict[str, str]
    shapes: dict[str, Shape]


def spell(net: Net, dialect: Dialect, around: str = "{}") -> Named:
    """The names of ``net`` in a dialect, each put into ``around``."""
    names = {around.format(dialect(key)): (key, shape) for key, shape in net}
    assert len(names) == len(net), "a dialect spelled two ids alike"
    return Named({name: key for name, (key, _) in names.items()}, {name: shape for name, (_, shape) in names.items()})


def joined(*parts: Named) -> Named:
    """Several lists as one."""
    ids = {name: key for part in parts for name, key in part.ids.items()}
    return Named(ids, {name: shape for part in parts for name, shape in part.shapes.items()})


def relabelled(part: Named, mark: str) -> Named:
    """The same names, meaning something else."""
    return Named({name: f"{mark}:{key}" for name, key in part.ids.items()}, part.shapes)


def table(rows: str, layers: str = "") -> Dialect:
    """A dialect from lines of ``id spelling``; ids that begin with ``layer.N.`` are spelled under ``layers``, where
    ``{}`` is N, and an id without a line keeps its own name.
    """
    words = dict(line.split() for line in rows.strip().splitlines())

    def dialect(key: str) -> str:
        module, leaf = key.rsplit(".", 1)
        if module.startswith("layer."):
            _, number, inner = module.split(".", 2)
            module = f"{layers.format(number)}.{words.get(inner, inner)}"
        else:
            module = words.get(module, module)
        return f"{module}.{leaf}" if leaf != "-" else module

    return dialect


def linear(name: str, out: int, into: int, bias: bool = True) -> Net:
    return [(f"{name}.weight", (out, into)), *([(f"{name}.bias", (out,))] if bias else [])]


def norm(name: str, size: int, bias: bool = True) -> Net:
    return [(f"{name}.weight", (size,)), *([(f"{name}.bias", (size,))] if bias else [])]


def conv(name: str, out: int, into: int, kernel: int, bias: bool = False) -> Net:
    return [(f"{name}.weight", (out, into, kernel, kernel)), *([(f"{name}.bias", (out,))] if bias else [])]


def batch_norm(name: str, size: int) -> Net:
    leaves: list[tuple[str, Shape]] = [(leaf, (size,)) for leaf in ("weight", "bias", "running_mean", "running_var")]
    return [(f"{name}.{leaf}", shape) for leaf, shape in [*leaves, ("num_batches_tracked", ())]]


def transposed(part: Named) -> Named:
    """GPT-2 of transformers: the matrices of the layers lie input first (Conv1D), so they mean something else."""
    turned = {name for name, key in part.ids.items() if key.startswith("layer") and len(part.shapes[name]) == 2}
    return Named(
        {name: f"T:{key}" if name in turned else key for name, key in part.ids.items()},
        {name: shape[::-1] if name in turned else shape for name, shape in part.shapes.items()},
    )


# Convolutional networks


def resnet(blocks: Iterable[int], wide: bool, classes: int = 1000, width: int = 64, channels: int = 3) -> Net:
    """ResNet-18/34 (``wide`` false) or 50/101."""
    net = conv("conv1", width, channels, 7) + batch_norm("bn1", width)
    into = width
    for stage, count in enumerate(blocks):
        size = width * 2**stage
        out = size * 4 if wide else size
        for block in range(count):
            at = f"stage{stage}.{block}"
            steps = [(into, size, 1), (size, size, 3), (size, out, 1)] if wide else [(into, size, 3), (size, size, 3)]
            for number, (a, b, kernel) in enumerate(steps, 1):
                net += conv(f"{at}.conv{number}", b, a, kernel) + batch_norm(f"{at}.bn{number}", b)
            if block == 0 and into != out:
                net += conv(f"{at}.short", out, into, 1) + batch_norm(f"{at}.shortbn", out)
            into = out
    return net + (linear("fc", classes, into) if classes else [])


def _resnet_dialect(stem: tuple[str, str], stages: tuple[str, ...], inner: dict[str, str], head: str) -> Dialect:
    def dialect(key: str) -> str:
        module, leaf = key.rsplit(".", 1)
        if module.startswith("stage"):
            stage, block, what = module.split(".")
            return f"{stages[int(stage[5:])].format(block)}.{inner[what]}.{leaf}"
        return {"conv1": stem[0], "bn1": stem[1], "fc": head}[module] + f".{leaf}"

    return dialect


def _inner(convs: str, norms: str, short: str, shortbn: str) -> dict[str, str]:
    return {
        **{f"conv{n}": convs.format(n, n - 1) for n in (1, 2, 3)},
        **{f"bn{n}": norms.format(n, n - 1) for n in (1, 2, 3)},
        "short": short,
        "shortbn": shortbn,
    }


RESNETS: dict[str, Dialect] = {
    "torchvision": _resnet_dialect(
        ("conv1", "bn1"),
        ("layer1.{}", "layer2.{}", "layer3.{}", "layer4.{}"),
        _inner("conv{0}", "bn{0}", "downsample.0", "downsample.1"),
        "fc",
    ),
    "detectron": _resnet_dialect(
        ("stem.conv1", "stem.conv1.norm"),
        ("res2.{}", "res3.{}", "res4.{}", "res5.{}"),
        _inner("conv{0}", "conv{0}.norm", "shortcut", "shortcut.norm"),
        "linear",
    ),
    "transformers": _resnet_dialect(
        ("embedder.embedder.convolution", "embedder.embedder.normalization"),
        tuple(f"encoder.stages.{n}.layers.{{}}" for n in range(4)),
        _inner("layer.{1}.convolution", "layer.{1}.normalization", "shortcut.convolution", "shortcut.normalization"),
        "classifier.1",
    ),
    "sequential": _resnet_dialect(
        ("features.0", "features.1"),
        ("features.4.{}", "features.5.{}", "features.6.{}", "features.7.{}"),
        _inner("conv{0}", "bn{0}", "downsample.0", "downsample.1"),
        "fc",
    ),
    "own": _resnet_dialect(
        ("stem.conv", "stem.norm"),
        tuple(f"stages.{n}.blocks.{{}}" for n in range(4)),
        _inner("conv{0}", "norm{0}", "skip.conv", "skip.norm"),
        "head",
    ),
}

VGGS = {11: "1,1,2,2,2", 13: "2,2,2,2,2", 16: "2,2,3,3,3", 19: "2,2,4,4,4"}


def vgg(depth: int, classes: int = 1000, norms: bool = False, hidden: int = 4096) -> Net:
    net: Net = []
    into, size = 3, 64
    for stage, count in enumerate(map(int, VGGS[depth].split(","))):
        for number in range(count):
            net += conv(f"conv.{stage}.{number}", size, into, 3, bias=True)
            net += batch_norm(f"bn.{stage}.{number}", size) if norms else []
            into = size
        size = min(512, size * 2)
    return net + linear("fc.0", hidden, 512 * 49) + linear("fc.1", hidden, hidden) + linear("fc.2", classes, hidden)


def vgg_dialect(kind: str, depth: int, norms: bool = False) -> Dialect:
    """``torchvision`` counts through one Sequential, ``caffe`` says conv3_1, ``own`` says block3.conv1."""
    places: dict[str, str] = {}
    at = 0
    for stage, count in enumerate(map(int, VGGS[depth].split(","))):
        for number in range(count):
            here = f"{stage}.{number}"
            places[f"conv.{here}"] = {"torchvision": f"features.{at}", "caffe": f"conv{stage + 1}_{number + 1}"}.get(
                kind, f"block{stage + 1}.conv{number + 1}"
            )
            places[f"bn.{here}"] = {"torchvision": f"features.{at + 1}", "caffe": f"bn{stage + 1}_{number + 1}"}.get(
                kind, f"block{stage + 1}.bn{number + 1}"
            )
            at += 3 if norms else 2
        at += 1
    heads = {"torchvision": ("classifier.0", "classifier.3", "classifier.6"), "caffe": ("fc6", "fc7", "fc8")}
    for number, name in enumerate(heads.get(kind, ("head.hidden1", "head.hidden2", "head.out"))):
        places[f"fc.{number}"] = name
    return lambda key: f"{places[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}"


def mobilenet(classes: int = 1000) -> Net:
    """MobileNetV2."""
    net = conv("stem.conv", 32, 3, 3) + batch_norm("stem.bn", 32)
    into, at = 32, 0
    for factor, out, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            hidden = into * factor
            if factor > 1:
                net += conv(f"block.{at}.expand", hidden, into, 1) + batch_norm(f"block.{at}.expandbn", hidden)
            net += conv(f"block.{at}.depth", hidden, 1, 3) + batch_norm(f"block.{at}.depthbn", hidden)
            net += conv(f"block.{at}.point", out, hidden, 1) + batch_norm(f"block.{at}.pointbn", out)
            into, at = out, at + 1
    return net + conv("last.conv", 1280, 320, 1) + batch_norm("last.bn", 1280) + linear("fc", classes, 1280)


def _mobilenet_torchvision(key: str) -> str:
    module, leaf = key.rsplit(".", 1)
    if not module.startswith("block."):
        ends = {"stem.conv": "features.0.0", "stem.bn": "features.0.1", "last.conv": "features.18.0"}
        return {**ends, "last.bn": "features.18.1", "fc": "classifier.1"}[module] + f".{leaf}"
    _, at, what = module.split(".")
    shift = -1 if at == "0" else 0
    place = {"expand": "0.0", "expandbn": "0.1", "depth": f"{1 + shift}.0", "depthbn": f"{1 + shift}.1"}
    return f"features.{int(at) + 1}.conv.{ {**place, 'point': str(2 + shift), 'pointbn': str(3 + shift)}[what] }.{leaf}"


MOBILENETS: dict[str, Dialect] = {
    "torchvision": _mobilenet_torchvision,
    "own": lambda key: key.replace("block.", "blocks.").replace("expand", "pw_in").replace("depth", "dw"),
    "flat": lambda key: key.replace("stem.", "first_").replace("block.", "features.").replace("fc.", "classifier."),
}


def convnext(depths: tuple[int, ...] = (3, 3, 9, 3), width: int = 96, classes: int = 1000) -> Net:
    net = conv("stem.conv", width, 3, 4, bias=True) + norm("stem.norm", width)
    for stage, depth in enumerate(depths):
        size = width * 2**stage
        if stage:
            net += norm(f"down{stage}.norm", size // 2) + conv(f"down{stage}.conv", size, size // 2, 2, bias=True)
        for block in range(depth):
            at = f"stage{stage}.{block}"
            net += [(f"{at}.dw.weight", (size, 1, 7, 7)), (f"{at}.dw.bias", (size,)), *norm(f"{at}.norm", size)]
            net += linear(f"{at}.fc1", size * 4, size) + linear(f"{at}.fc2", size, size * 4)
            net.append((f"{at}.scale.-", (size,)))
    return net + norm("norm", size) + linear("head", classes, size)


def _convnext_dialect(stem: tuple[str, str], down: tuple[str, str], block: str, inner: str, ends: str) -> Dialect:
    words = dict(zip(("dw", "norm", "fc1", "fc2", "scale"), inner.split(), strict=True))
    tail = dict(zip(("norm", "head"), ends.split(), strict=True))

    def dialect(key: str) -> str:
        module, leaf = key.rsplit(".", 1)
        tail_leaf = "" if leaf == "-" else f".{leaf}"
        if module.startswith("stem."):
            return stem[module == "stem.norm"] + tail_leaf
        if module.startswith("down"):
            return down[module.endswith("conv")].format(module[4]) + tail_leaf
        if module.startswith("stage"):
            stage, at, what = module.split(".")
            return f"{block.format(stage[5:], at)}.{words[what]}" + tail_leaf
        return tail[module] + tail_leaf

    return dialect


CONVNEXTS: dict[str, Dialect] = {
    "facebook": _convnext_dialect(
        ("downsample_layers.0.0", "downsample_layers.0.1"),
        ("downsample_layers.{}.0", "downsample_layers.{}.1"),
        "stages.{}.{}",
        "dwconv norm pwconv1 pwconv2 gamma",
        "norm head",
    ),
    "timm": _convnext_dialect(
        ("stem.0", "stem.1"),
        ("stages.{}.downsample.0", "stages.{}.downsample.1"),
        "stages.{}.blocks.{}",
        "conv_dw norm mlp.fc1 mlp.fc2 gamma",
        "head.norm head.fc",
    ),
    "transformers": _convnext_dialect(
        ("embeddings.patch_embeddings", "embeddings.layernorm"),
        ("encoder.stages.{}.downsampling_layer.0", "encoder.stages.{}.downsampling_layer.1"),
        "encoder.stages.{}.layers.{}",
        "dwconv layernorm pwconv1 pwconv2 layer_scale_parameter",
        "layernorm classifier",
    ),
}


def unet(width: int = 64, classes: int = 2) -> Net:
    net: Net = []
    sizes = [3, width, width * 2, width * 4, width * 8]
    for n, (a, b) in enumerate(pairwise(sizes)):
        net += conv(f"down{n}.conv1", b, a, 3, bias=True) + batch_norm(f"down{n}.bn1", b)
        net += conv(f"down{n}.conv2", b, b, 3, bias=True) + batch_norm(f"down{n}.bn2", b)
    for n, (a, b) in enumerate(((width * 8, width * 4), (width * 4, width * 2), (width * 2, width))):
        net += [(f"up{n}.up.weight", (a, b, 2, 2)), (f"up{n}.up.bias", (b,))]
        net += conv(f"up{n}.conv1", b, a, 3, bias=True) + batch_norm(f"up{n}.bn1", b)
        net += conv(f"up{n}.conv2", b, b, 3, bias=True) + batch_norm(f"up{n}.bn2", b)
    return net + conv("out", classes, width, 1, bias=True)


def _unet_dialect(down: str, up: str, inner: str, out: str) -> Dialect:
    words = dict(zip(("conv1", "bn1", "conv2", "bn2", "up"), inner.split(), strict=True))

    def dialect(key: str) -> str:
        parts = key.split(".")
        if parts[0] == "out":
            return f"{out}.{parts[1]}"
        side = down if parts[0].startswith("down") else up
        return f"{side.format(int(parts[0][-1]) + 1)}.{words[parts[1]]}.{parts[2]}"

    return dialect


UNETS: dict[str, Dialect] = {
    "milesial": _unet_dialect(
        "down{}", "up{}", "double_conv.0 double_conv.1 double_conv.3 double_conv.4 up", "outc.conv"
    ),
    "own": _unet_dialect("encoder{}", "decoder{}", "conv1 norm1 conv2 norm2 upconv", "conv"),
    "prefixed": _unet_dialect(
        "unet.down{}", "unet.up{}", "double_conv.0 double_conv.1 double_conv.3 double_conv.4 up", "unet.outc.conv"
    ),
}


# Transformers


def bert(layers: int = 12, size: int = 768, vocabulary: int = 30522, labels: int = 0) -> Net:
    net: Net = [("tok.weight", (vocabulary, size)), ("pos.weight", (512, size)), ("kind.weight", (2, size))]
    net += norm("embnorm", size)
    for n in range(layers):
        at = f"layer.{n}"
        for part in ("q", "k", "v", "o"):
            net += linear(f"{at}.{part}", size, size)
        net += norm(f"{at}.norm1", size) + linear(f"{at}.fc1", size * 4, size) + linear(f"{at}.fc2", size, size * 4)
        net += norm(f"{at}.norm2", size)
    net += linear("pool", size, size)
    return net + (linear("head", labels, size) if labels else [])


_BERT = """
tok embeddings.word_embeddings
pos embeddings.position_embeddings
kind embeddings.token_type_embeddings
embnorm embeddings.LayerNorm
q attention.self.query
k attention.self.key
v attention.self.value
o attention.output.dense
norm1 attention.output.LayerNorm
fc1 intermediate.dense
fc2 output.dense
norm2 output.LayerNorm
pool pooler.dense
head classifier
"""
BERTS: dict[str, Dialect] = {
    "transformers": table(_BERT, "encoder.layer.{}"),
    "fairseq": table(
        """
        tok sentence_encoder.embed_tokens
        pos sentence_encoder.embed_positions
        kind sentence_encoder.segment_embeddings
        embnorm sentence_encoder.emb_layer_norm
        q self_attn.q_proj
        k self_attn.k_proj
        v self_attn.v_proj
        o self_attn.out_proj
        norm1 self_attn_layer_norm
        norm2 final_layer_norm
        pool pooled_projection
        head classification_heads.main.out_proj
        """,
        "sentence_encoder.layers.{}",
    ),
    "distil": table(
        """
        tok embeddings.word_embeddings
        pos embeddings.position_embeddings
        kind embeddings.kind_embeddings
        embnorm embeddings.LayerNorm
        q attention.q_lin
        k attention.k_lin
        v attention.v_lin
        o attention.out_lin
        norm1 sa_layer_norm
        fc1 ffn.lin1
        fc2 ffn.lin2
        norm2 output_layer_norm
        pool pre_classifier
        head classifier
        """,
        "transformer.layer.{}",
    ),
    "own": table(
        """
        tok embed.token
        pos embed.position
        kind embed.segment
        embnorm embed.norm
        q attn.wq
        k attn.wk
        v attn.wv
        o attn.wo
        norm1 attn_norm
        fc1 feed_forward.w_in
        fc2 feed_forward.w_out
        norm2 ff_norm
        pool pooler
        head cls_head
        """,
        "blocks.{}",
    ),
    "pretrainer": table(
        """
        tok embedding.token
        pos embedding.position
        kind embedding.segment
        embnorm embedding.norm
        q attention.linear_layers.0
        k attention.linear_layers.1
        v attention.linear_layers.2
        o attention.output_linear
        norm1 input_sublayer.norm
        fc1 feed_forward.w_1
        fc2 feed_forward.w_2
        norm2 output_sublayer.norm
        pool pooling
        head linear
        """,
        "transformer_blocks.{}",
    ),
}


def vit(layers: int = 12, size: int = 768, classes: int = 1000, fused: bool = True, patch: int = 16) -> Net:
    net: Net = [("cls.-", (1, 1, size)), ("pos.-", (1, (224 // patch) ** 2 + 1, size))]
    net += conv("patch", size, 3, patch, bias=True)
    for n in range(layers):
        at = f"layer.{n}"
        net += norm(f"{at}.norm1", size)
        for part, rows in (("qkv", 3 * size),) if fused else (("q", size), ("k", size), ("v", size)):
            net += linear(f"{at}.{part}", rows, size)
        net += linear(f"{at}.o", size, size) + norm(f"{at}.norm2", size)
        net += linear(f"{at}.fc1", size * 4, size) + linear(f"{at}.fc2", size, size * 4)
    return net + norm("norm", size) + (linear("head", classes, size) if classes else [])


_TIMM_VIT = """
cls cls_token
pos pos_embed
patch patch_embed.proj
qkv attn.qkv
o attn.proj
fc1 mlp.fc1
fc2 mlp.fc2
"""


def _torchvision_vit(key: str) -> str:
    plain = table(
        """
        cls class_token
        pos encoder.pos_embedding
        patch conv_proj
        norm1 ln_1
        o self_attention.out_proj
        norm2 ln_2
        fc1 mlp.0
        fc2 mlp.3
        norm encoder.ln
        head heads.head
        """,
        "encoder.layers.encoder_layer_{}",
    )(key)
    return plain.replace(".qkv.", ".self_attention.in_proj_")


VITS: dict[str, Dialect] = {
    "timm": table(_TIMM_VIT, "blocks.{}"),
    "timm_own": table(_TIMM_VIT.replace("mlp.", "ff.").replace("attn.qkv", "attention.to_qkv"), "transformer.{}"),
    "torchvision": _torchvision_vit,
    "openclip": lambda key: table(
        """
        cls visual.class_embedding
        pos visual.positional_embedding
        patch visual.conv1
        norm1 ln_1
        o attn.out_proj
        norm2 ln_2
        fc1 mlp.c_fc
        fc2 mlp.c_proj
        norm visual.ln_post
        head visual.head
        """,
        "visual.transformer.resblocks.{}",
    )(key).replace(".qkv.", ".attn.in_proj_"),
}
SPLIT_VITS: dict[str, Dialect] = {
    "transformers": table(
        """
        cls embeddings.cls_token
        pos embeddings.position_embeddings
        patch embeddings.patch_embeddings.projection
        norm1 layernorm_before
        q attention.attention.query
        k attention.attention.key
        v attention.attention.value
        o attention.output.dense
        norm2 layernorm_after
        fc1 intermediate.dense
        fc2 output.dense
        norm layernorm
        head classifier
        """,
        "encoder.layer.{}",
    ),
    "own": table(
        """
        cls cls_token
        pos pos_embed
        patch patch_embed.proj
        q attn.q_proj
        k attn.k_proj
        v attn.v_proj
        o attn.out_proj
        fc1 mlp.fc1
        fc2 mlp.fc2
        """,
        "blocks.{}",
    ),
    "siglip": table(
        """
        cls embeddings.class_embedding
        pos embeddings.position
        patch embeddings.patch_embedding
        norm1 layer_norm1
        q self_attn.q_proj
        k self_attn.k_proj
        v self_attn.v_proj
        o self_attn.out_proj
        norm2 layer_norm2
        fc1 mlp.fc1
        fc2 mlp.fc2
        norm post_layernorm
        """,
        "encoder.layers.{}",
    ),
}


def gpt(layers: int = 12, size: int = 768, vocabulary: int = 50257, fused: bool = True) -> Net:
    """GPT-2 with nn.Linear, as nanoGPT has it."""
    net: Net = [("tok.weight", (vocabulary, size)), ("pos.weight", (1024, size))]
    for n in range(layers):
        at = f"layer.{n}"
        net += norm(f"{at}.norm1", size)
        for part, rows in (("qkv", 3 * size),) if fused else (("k", size), ("q", size), ("v", size)):
            net += linear(f"{at}.{part}", rows, size)
        net += linear(f"{at}.o", size, size) + norm(f"{at}.norm2", size)
        net += linear(f"{at}.fc1", size * 4, size) + linear(f"{at}.fc2", size, size * 4)
    return net + norm("norm", size)


_GPT = """
tok wte
pos wpe
norm1 ln_1
qkv attn.c_attn
o attn.c_proj
norm2 ln_2
fc1 mlp.c_fc
fc2 mlp.c_proj
norm ln_f
"""
GPTS: dict[str, Dialect] = {
    "gpt2": table(_GPT, "h.{}"),
    "nano": table(_GPT.replace("tok wte", "tok transformer.wte").replace("wpe", "transformer.wpe"), "transformer.h.{}"),
    "own": table(
        """
        tok tok_embed
        pos pos_embed
        norm1 norm1
        qkv attn.qkv
        o attn.proj
        fc1 mlp.fc_in
        fc2 mlp.fc_out
        norm final_norm
        """,
        "layers.{}",
    ),
    "rasbt": table(
        """
        tok tok_emb
        pos pos_emb
        qkv att.W_qkv
        o att.out_proj
        fc1 ff.layers.0
        fc2 ff.layers.2
        norm final_norm
        """,
        "trf_blocks.{}",
    ),
}
SPLIT_GPTS: dict[str, Dialect] = {
    "mingpt": table(
        """
        tok tok_emb
        pos pos_emb
        norm1 ln1
        k attn.key
        q attn.query
        v attn.value
        o attn.proj
        norm2 ln2
        fc1 mlp.0
        fc2 mlp.2
        norm ln_f
        """,
        "blocks.{}",
    ),
    "own": table(
        """
        tok embed_tokens
        pos embed_positions
        norm1 norm1
        k self_attn.k_proj
        q self_attn.q_proj
        v self_attn.v_proj
        o self_attn.o_proj
        norm2 norm2
        norm norm
        """,
        "layers.{}",
    ),
}


def llama(layers: int = 16, size: int = 1024, hidden: int = 2816, vocabulary: int = 32000, groups: int = 4) -> Net:
    net: Net = [("tok.weight", (vocabulary, size))]
    for n in range(layers):
        at = f"layer.{n}"
        kv = size // groups
        for part, rows, into in (("q", size, size), ("k", kv, size), ("v", kv, size), ("o", size, size)):
            net += linear(f"{at}.{part}", rows, into, bias=False)
        for part, rows, into in (("gate", hidden, size), ("down", size, hidden), ("up", hidden, size)):
            net += linear(f"{at}.{part}", rows, into, bias=False)
        net += norm(f"{at}.norm1", size, bias=False) + norm(f"{at}.norm2", size, bias=False)
    return net + norm("norm", size, bias=False) + linear("head", vocabulary, size, bias=False)


LLAMAS: dict[str, Dialect] = {
    "transformers": table(
        """
        tok model.embed_tokens
        q self_attn.q_proj
        k self_attn.k_proj
        v self_attn.v_proj
        o self_attn.o_proj
        gate mlp.gate_proj
        up mlp.up_proj
        down mlp.down_proj
        norm1 input_layernorm
        norm2 post_attention_layernorm
        norm model.norm
        head lm_head
        """,
        "model.layers.{}",
    ),
    "meta": table(
        """
        tok tok_embeddings
        q attention.wq
        k attention.wk
        v attention.wv
        o attention.wo
        gate feed_forward.w1
        down feed_forward.w2
        up feed_forward.w3
        norm1 attention_norm
        norm2 ffn_norm
        head output
        """,
        "layers.{}",
    ),
    "rasbt": table(
        """
        tok tok_emb
        q att.W_query
        k att.W_key
        v att.W_value
        o att.out_proj
        gate ff.fc1
        up ff.fc2
        down ff.fc3
        norm final_norm
        head out_head
        """,
        "trf_blocks.{}",
    ),
}


def mlp(sizes: tuple[int, ...] = (784, 512, 256, 10)) -> Net:
    return [row for n, (a, b) in enumerate(pairwise(sizes)) for row in linear(f"fc.{n}", b, a)]


MLPS: dict[str, Dialect] = {
    "numbered": lambda key: f"fc{int(key.split('.')[1]) + 1}.{key.split('.')[2]}",
    "sequential": lambda key: f"net.{2 * int(key.split('.')[1])}.{key.split('.')[2]}",
    "list": lambda key: f"layers.{key.split('.')[1]}.{key.split('.')[2]}",
}


def lenet() -> Net:
    net = conv("conv.0", 6, 1, 5, bias=True) + conv("conv.1", 16, 6, 5, bias=True)
    return net + linear("fc.0", 120, 400) + linear("fc.1", 84, 120) + linear("fc.2", 10, 84)


LENETS: dict[str, Dialect] = {
    "numbered": lambda key: f"{key.split('.')[0]}{int(key.split('.')[1]) + 1}.{key.split('.')[2]}",
    "sequential": table(
        "conv.0 features.0\nconv.1 features.3\nfc.0 classifier.0\nfc.1 classifier.2\nfc.2 classifier.4"
    ),
}


def lstm(vocabulary: int = 10000, embed: int = 200, hidden: int = 400, layers: int = 2) -> Net:
    net: Net = [("embed.weight", (vocabulary, embed))]
    for n in range(layers):
        into = embed if n == 0 else hidden
        net += [(f"rnn.weight_ih_l{n}", (4 * hidden, into)), (f"rnn.weight_hh_l{n}", (4 * hidden, hidden))]
        net += [(f"rnn.bias_ih_l{n}", (4 * hidden,)), (f"rnn.bias_hh_l{n}", (4 * hidden,))]
    return net + linear("out", vocabulary, hidden)


LSTMS: dict[str, Dialect] = {
    "plain": table("embed embedding\nrnn lstm\nout fc"),
    "example": table("embed encoder\nrnn rnn\nout decoder"),
    "own": table("embed tok_embed\nrnn core.lstm\nout head.proj"),
}
