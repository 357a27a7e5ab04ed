"""What the name of an old checkpoint says: numbers read as numbers, and words such as ``best``. Pure."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

_FLAGS = re.IGNORECASE | re.ASCII
_SUFFIXES = re.compile(r"(\.(pth|pt|ckpt|tar|bin|pkl|pickle|safetensors|model|t7|npz|npy))+$", _FLAGS)
_NUMBER = r"(\d{1,18})(?!\d|\.\d)"
_EPOCH = (
    re.compile(rf"(?<![a-z0-9])(?:epochs?|ep|e)[\s_=.-]?{_NUMBER}", _FLAGS),
    re.compile(rf"(?<![\d.]){_NUMBER}[\s_]?(?:epochs?|ep)(?![a-z])", _FLAGS),
)
_STEP = (
    re.compile(rf"(?<![a-z0-9])(?:global[_-]?steps?|steps?|iterations?|iters?|it|updates?)[\s_=.-]?{_NUMBER}", _FLAGS),
    re.compile(rf"(?<![\d.]){_NUMBER}[\s_]?(?:steps?|iterations?|iters?|it)(?![a-z])", _FLAGS),
)
"""The word before its number, and, where there is no such, behind it: ``10_epochs``."""
_MEASURED = re.compile(r"([A-Za-z][A-Za-z0-9_/]*?)[\s_=-]?(-?\d{1,9}\.\d{1,12})(?![\d.])", re.ASCII)
_DATE = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d(?:[-_T ]?\d\d[-_:]?\d\d(?:[-_:]?\d\d)?)?(?!\d)", _FLAGS
)
_OTHER = re.compile(
    r"(?<![a-z])(?:folds?|seed|rank|gpus?|part|stage|exp|run|lr|bs|size|dim|version|layers?|heads?|img|patch|top|v)"
    r"[\s_=.-]?\d+(?:\.\d+)?",
    _FLAGS,
)
_BARE = re.compile(rf"(?:^|[\s_=.-]|(?<![a-z])(?:checkpoint|ckpt|model|net|weights)){_NUMBER}(?![a-z])", _FLAGS)
_BEST = re.compile(r"(?<![a-z])best|best(?![a-z])", _FLAGS)
_LAST = re.compile(r"(?<![a-z])(?:last|latest|final|newest|current)(?![a-z])", _FLAGS)
_SHARD = re.compile(r"\d{1,6}-of-\d{1,6}", _FLAGS)
_METRIC_WORDS = """
acc accs accuracy ap auc auroc bleu bpb cer correlation dice elbo err error f1 fid iou kappa loss losses lpips mae map
mcc metric metrics miou mse nll perplexity ppl precision psnr r2 recall return reward rmse rouge score ssim top1 top5
wer
"""
_METRICS = frozenset(_METRIC_WORDS.split())
_SETTING_WORDS = """
coef every fn func function interval lambda name patience scale scaler threshold type weight weights window
"""
_SETTINGS = frozenset(_SETTING_WORDS.split())
"""Words that make a number a setting: ``loss_weight`` was not measured."""
_SO_FAR = frozenset(["best", "min", "max", "lowest", "highest"])
_BEFORE = frozenset(["val", "valid", "validation", "test", "train", "training", "eval", "dev", "avg", "mean", "ema"])


class Named(msgspec.Struct, frozen=True):
    """What a file's name says.

    Attributes:
        epoch: the number beside ``epoch``.
        step: the number beside ``step``, ``iter`` and the like.
        number: the last other number that may be one of them.
        metrics: ``{"val_loss": 0.25}`` of ``epoch=3-val_loss=0.25.ckpt``.
        role: ``best`` or ``last``, where the name says so.
        shard: whether it is one of several files of one model.
    """

    epoch: int | None = None
    step: int | None = None
    number: int | None = None
    metrics: dict[str, float] = {}
    role: Literal["best", "last"] | None = None
    shard: bool = False


def read_name(name: str) -> Named:
    """What ``checkpoint_epoch_10.pth`` says."""
    stem = _SUFFIXES.sub("", name)
    metrics = {_metric_name(match[1]): float(match[2]) for match in _MEASURED.finditer(stem) if is_metric(match[1])}
    rest = _OTHER.sub(" ", _DATE.sub(" ", _MEASURED.sub(" ", stem)))
    epoch, rest = _taken(_EPOCH, rest)
    step, rest = _taken(_STEP, rest)
    bare = [int(match[1]) for match in _BARE.finditer(rest)]
    role: Literal["best", "last"] | None = "best" if _BEST.search(stem) else "last" if _LAST.search(stem) else None
    return Named(epoch, step, bare[-1] if bare else None, metrics, role, _SHARD.search(stem) is not None)


def _taken(patterns: tuple[re.Pattern[str], ...], text: str) -> tuple[int | None, str]:
    """The first number that a pattern finds, and the text without what it matched."""
    for pattern in patterns:
        match = pattern.search(text)
        if match is not None:
            return int(match[1]), pattern.sub(" ", text)
    return None, text


def _metric_name(key: str) -> str:
    """``val_loss`` of ``resnet_val_loss``: from the first word that belongs to a metric."""
    words = re.split(r"[_/]", key)
    known = [at for at, word in enumerate(words) if word.lower() in _BEFORE | _SO_FAR or is_metric(word)]
    return "_".join(words[known[0] :])


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``epoch_9`` before ``epoch_10``."""
    pieces = re.split(r"(\d{1,18})", name, flags=re.ASCII)
    return tuple((1, int(one), "") if one.isascii() and one.isdigit() else (0, 0, one) for one in pieces)


def is_metric(key: str) -> bool:
    """Whether a name is that of a measured number: ``val_loss``, ``best_acc1``, ``top5``."""
    words = _words(key)
    plain = words | {word.rstrip("0123456789") for word in words}
    return (bool(plain & _METRICS) or key.lower() == "best") and not plain & _SETTINGS


def is_best_so_far(key: str) -> bool:
    """Whether a metric is the best so far and not the checkpoint's own: ``best_acc``, ``val_loss_min``."""
    return bool(_words(key) & _SO_FAR)


def _words(key: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    return {word for text in (spaced, key) for word in re.findall(r"[a-z]+\d*", text.lower())}
