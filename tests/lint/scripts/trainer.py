"""A trainer as a class, with an early stop and checkpoints that are deleted to save room."""

import glob
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn, optim
from torch.cuda.amp import GradScaler


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)


class Trainer:
    def __init__(self, loader, folder):
        self.model = Encoder()
        self.optimizer = optim.AdamW(self.model.parameters(), lr=1e-3)
        self.scaler = GradScaler()
        self.loader = loader
        self.folder = Path(folder)
        self.best_loss = float("inf")
        self.best_state = None
        self.start_epoch = 0

    def fit(self, epochs):
        for epoch in range(self.start_epoch, epochs):
            losses = []
            for x, y in self.loader:
                loss = nn.functional.mse_loss(self.model(x), y)
                self.scaler.scale(loss).backward()
                self.scaler.step(self.optimizer)
                losses.append(loss.item())
            val_loss = np.mean(losses)
            if val_loss < self.best_loss:  # finds HF013
                self.best_loss = val_loss
                self.best_state = dict(self.model.state_dict())  # finds HF001
            self.save(epoch, val_loss)

    def save(self, epoch, val_loss):
        last = self.folder / "last.pt"
        if last.exists():
            os.remove(last)  # finds HF010
        state = {"epoch": epoch, "model": self.model.state_dict(), "val_loss": float(val_loss)}
        state["optimizer"] = self.optimizer.state_dict()
        torch.save(state, last)  # finds HF009 HF015
        torch.save(self.model, self.folder / f"model_{epoch}.pt")  # finds HF002

    def resume(self):
        newest = max(glob.glob(f"{self.folder}/*.pt"), key=os.path.getctime)  # finds HF014
        checkpoint = torch.load(newest, weights_only=False)  # finds HF021 HF023
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.start_epoch = checkpoint["epoch"] + 1
