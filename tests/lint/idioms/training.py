"""A training that does all of it right with torch alone."""

import argparse
import copy
import os
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--resume")
args = parser.parse_args()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Linear(4, 2).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
scaler = torch.amp.GradScaler("cpu")
loader = DataLoader(TensorDataset(torch.ones(8, 4)), shuffle=True, num_workers=2)
start_epoch, best_acc, best_state = 0, 0.0, None


def validate(net):
    net.eval()
    accuracy = float(net(torch.ones(1, 4).to(device)).sum())
    net.train()
    return accuracy


def save_whole(state, path):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if args.resume:
    checkpoint = torch.load(args.resume, map_location=device, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    scaler.load_state_dict(checkpoint["scaler"])
    start_epoch = checkpoint["epoch"] + 1
    best_acc = checkpoint["best_acc"]
    torch.set_rng_state(checkpoint["rng_state"].cpu())

for epoch in range(start_epoch, 10):
    total = 0.0
    for (x,) in loader:
        loss = model(x.to(device)).sum()
        loss.backward()
        optimizer.step()
        total += loss.item()
    scheduler.step()
    acc = validate(model)
    if acc > best_acc:
        best_acc = acc
        best_state = copy.deepcopy(model.state_dict())
        best_cpu = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "best_acc": best_acc,
        "loss": loss.item(),
        "args": vars(args),
        "rng_state": torch.get_rng_state(),
        "mean": float(np.mean([total])),
        "python": str(random.random()),
    }
    save_whole(state, "checkpoints/last.pt")
    if epoch % 10 == 0:
        torch.save(model.state_dict(), f"checkpoints/epoch_{epoch:04d}.pt")
model.load_state_dict(best_state)
