"""A tiny GPT-2 out of a config, trained by a Trainer on random tokens."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from holdfast.integrations.transformers import train as held

SIZE, BATCH, EPOCHS = 22, 4, 3


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random rows of tokens, the same each time."""

    def __init__(self, size: int) -> None:
        self.rows = torch.randint(16, (size, 6), generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Watch(TrainerCallback):
    """Sends this process a signal behind a step of this process."""

    def __init__(self, step: int = 0, number: int = signal.SIGKILL) -> None:
        self.left, self.number, self.steps = step, number, 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def trainer_in(folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    """A trainer as a program makes it, from the seed."""
    set_seed(7)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    args = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": EPOCHS,
            "learning_rate": 0.01,
            "save_strategy": "no",
            "eval_strategy": "epoch",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "seed": 7,
            **options,
        },
    )
    return Trainer(
        GPT2LMHeadModel(config), args, train_dataset=Tokens(SIZE), eval_dataset=Tokens(8), callbacks=list(callbacks)
    )


def finished(trainer: Trainer, root: Path | None = None, **options: Any) -> Trainer:
    """Trains to the end, alone or in a run, and keeps all that two trainings must have alike."""
    if root is None:
        trainer.train()
    else:
        held(trainer, root, **options)
    trainer.held_state = state_of(trainer)
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that two trainings must have alike."""
    inner: Any = trainer.optimizer
    optimizer = getattr(inner, "optimizer", inner).state_dict()
    moments = {f"{i}.{k}": v for i, s in optimizer["state"].items() for k, v in s.items()}
    model: nn.Module = trainer.model
    return {
        **{name: value.clone() for name, value in model.state_dict().items()},
        **moments,
        "lr": torch.tensor(optimizer["param_groups"][0]["lr"]),
        "rng": torch.get_rng_state(),
        "steps": torch.tensor([trainer.state.global_step, trainer.state.epoch]),
        "evaluated": torch.tensor([line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]),
    }
