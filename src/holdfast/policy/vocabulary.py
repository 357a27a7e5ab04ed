"""What the segments of tensor names mean, whoever wrote the model: ``self_attn.q_proj`` and ``attention.self.query``.

The spellings are those of torchvision, timm, transformers, fairseq, nanoGPT and the published LLaMA weights, read from
their module definitions. A spelling that means different things in different models is left out: an unknown word is
only equal to itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from holdfast.policy.names import without_wrappers

_SPELLINGS: dict[str, str] = {
    "attn": "attn att attention self_attn self_attention mha selfattention self_attn_layer",
    "cross": "cross_attn crossattention cross_attention encoder_attn encoder_attention multihead_attn encdecattention",
    "mlp": "mlp ffn feed_forward ff feedforward",
    "layers": "layers layer blocks block h resblocks encoder_layers transformer_blocks",
    "q": "q query q_proj wq w_query to_q q_lin query_proj q_linear",
    "k": "k key k_proj wk w_key to_k k_lin key_proj k_linear",
    "v": "v value v_proj wv w_value to_v v_lin value_proj v_linear",
    "qkv": "qkv in_proj c_attn query_key_value wqkv w_qkv qkv_proj to_qkv",
    "proj": "proj o_proj out_proj wo c_proj out_lin proj_out",
    "fc1": "fc1 c_fc lin1 linear1",
    "fc2": "fc2 lin2 linear2",
    "gate": "gate_proj w1",
    "down": "down_proj w2",
    "up": "up_proj w3",
    "norm1": "norm1 ln_1 ln1 layernorm_before input_layernorm attention_norm sa_layer_norm layer_norm1",
    "norm2": "norm2 ln_2 ln2 layernorm_after post_attention_layernorm ffn_norm output_layer_norm layer_norm2",
    "norm": "norm ln_f layernorm layer_norm ln_final final_layernorm",
    "wte": "wte tok_embeddings word_embeddings token_embedding tok_emb embed_tokens",
    "wpe": "wpe position_embeddings pos_emb",
    "lm_head": "lm_head out_head",
    "cls_token": "cls_token class_token class_embedding",
    "pos_embed": "pos_embed pos_embedding positional_embedding",
}
_SEGMENTS = {spelling: word for word, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
    "moving_variance": "running_var",
}
LEAVES = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked", *_LEAVES})
"""Names that a tensor has inside its module; any other last segment is a parameter that stands by itself."""

_PHRASES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("attn", "self"), ("attn",)),
    (("attn", "attn"), ("attn",)),
    (("attn", "output", "dense"), ("attn", "proj")),
    (("attn", "dense"), ("attn", "proj")),
    (("intermediate", "dense"), ("mlp", "fc1")),
    (("output", "dense"), ("mlp", "fc2")),
    (("mlp", "dense_h_to_4h"), ("mlp", "fc1")),
    (("mlp", "dense_4h_to_h"), ("mlp", "fc2")),
    (("mlp", "proj"), ("mlp", "fc2")),
)
_OPPOSITES: tuple[tuple[frozenset[str], ...], ...] = tuple(
    tuple(frozenset(words.split()) for words in row)
    for row in (
        ("q", "k", "v", "qkv"),
        ("attn", "cross", "mlp"),
        ("fc1", "fc2"),
        ("gate", "up", "down"),
        ("norm1", "norm2"),
        ("conv", "norm norm1 norm2 bn ln"),
        ("embed embedding embeddings emb wte wpe", "head fc classifier lm_head logits"),
        ("encoder", "decoder"),
        ("student online", "teacher target"),
        ("source src", "target tgt"),
        ("generator", "discriminator critic"),
        ("actor policy", "critic value v"),
        ("left", "right"),
        ("forward", "backward reverse"),
        ("text", "vision visual image", "audio"),
        ("rgb", "depth", "flow"),
        ("cls", "bbox", "mask"),
        ("mean mu", "var std sigma logvar"),
        ("in", "out"),
    )
)
_PREFERRED = (("encoder_q", "encoder_k"), ("teacher", "student"), ("online_encoder", "target_encoder"))
_WORDS = re.compile(r"[a-z]+|\d+")


def canonical(name: str) -> tuple[str, ...]:
    """The segments of ``name`` in one spelling: ``bert.encoder.layer.0.attention.self.query.weight`` as
    ``bert, encoder, layers, 0, attn, q, weight``; wrapper segments are left out.
    """
    segments = [segment for segment in without_wrappers(name).lower().split(".") if segment != "module"] or [name]
    if segments[-1] in ("in_proj_weight", "in_proj_bias"):
        segments[-1:] = ["qkv", segments[-1].removeprefix("in_proj_")]
    words = [_SEGMENTS.get(segment, segment) for segment in segments]
    words[-1] = _LEAVES.get(segments[-1], words[-1])
    if words[:-1] == ["output"]:
        words[0] = "lm_head"
    for phrase, plain in _PHRASES:
        words = _replaced(words, phrase, plain)
    return tuple(words)


def _replaced(words: list[str], phrase: tuple[str, ...], plain: tuple[str, ...]) -> list[str]:
    if phrase[0] not in words:
        return words
    for start in range(len(words) - len(phrase) + 1):
        if tuple(words[start : start + len(phrase)]) == phrase:
            return [*words[:start], *plain, *words[start + len(phrase) :]]
    return words


def opposed(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists of canonical segments name different things: ``q`` against ``k``, ``encoder`` against
    ``decoder``; segments that both have say nothing.
    """
    here, there = _meanings(one), _meanings(other)
    here, there = here - there, there - here
    return any(
        here & one_word and there & other_word
        for row in _OPPOSITES
        for one_word in row
        for other_word in row
        if one_word is not other_word
    )


def _meanings(segments: Sequence[str]) -> set[str]:
    return set(segments).union(*(_WORDS.findall(segment) for segment in segments))


def preferred(names: Sequence[str]) -> list[str]:
    """``names`` without the copies that a training keeps beside the network: ``encoder_k`` beside ``encoder_q``
    (MoCo), ``student`` beside ``teacher`` (DINO), ``target_encoder`` beside ``online_encoder`` (BYOL).
    """
    split = [name.split(".") for name in names]
    for keep, copy in _PREFERRED:
        kept = {".".join(parts) for parts in split if keep in parts}
        twins = [parts for parts in split if copy in parts]
        both = sum(".".join(keep if part == copy else part for part in parts) in kept for parts in twins)
        if both * 2 > len(twins):
            split = [parts for parts in split if copy not in parts]
    return [".".join(parts) for parts in split]
