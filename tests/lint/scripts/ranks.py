"""DistributedDataParallel, with a dataset that makes its own noise."""

import os

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    def __init__(self, images):
        self.images = images
        self.noise = np.random.RandomState(0)  # finds HF020

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + self.noise.randn()


def train(model, optimizer, loader, epochs, start):
    for epoch in range(start, epochs):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()
        checkpoint = {
            "epoch": epoch,  # finds HF017
            "model": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(checkpoint, "last.pt")  # finds HF009 HF012 HF018


def main():
    dist.init_process_group("nccl")
    rank = int(os.environ["LOCAL_RANK"])
    model = DDP(torch.nn.Linear(8, 8).to(rank), device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Noisy(torch.ones(64, 8)), shuffle=True, num_workers=4)
    start = 0
    if os.path.exists("last.pt"):
        saved = torch.load("last.pt", map_location=f"cuda:{rank}")
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"]
    train(model, optimizer, loader, 10, start)
    if rank == 0:
        torch.save(model.module.state_dict(), "final.pt")


main()
