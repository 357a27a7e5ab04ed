"""The training script that half of all repositories began with."""

import argparse
import os
import shutil

import torch
import torch.nn as nn
import torchvision.models as models
from torch.optim.lr_scheduler import StepLR

parser = argparse.ArgumentParser()
parser.add_argument("--resume", default="")
parser.add_argument("--epochs", type=int, default=90)
best_acc1 = 0


def main():
    global best_acc1
    args = parser.parse_args()
    model = models.resnet18()
    model = torch.nn.DataParallel(model).cuda()
    criterion = nn.CrossEntropyLoss().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    start_epoch = 0
    if args.resume and os.path.isfile(args.resume):
        checkpoint = torch.load(args.resume)  # finds HF023
        start_epoch = checkpoint["epoch"]
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler = StepLR(optimizer, step_size=30)  # finds HF019
    train_loader = torch.utils.data.DataLoader(datasets(), batch_size=256, shuffle=True, num_workers=4)

    for epoch in range(start_epoch, args.epochs):
        for images, target in train_loader:
            loss = criterion(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        acc1 = validate(model)
        scheduler.step()
        is_best = acc1 > best_acc1
        best_acc1 = max(acc1, best_acc1)  # finds HF013
        save_checkpoint(
            {
                "epoch": epoch + 1,
                "state_dict": model.state_dict(),  # finds HF005
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),  # finds HF016
                "args": args,  # finds HF003
            },
            is_best,
        )


def save_checkpoint(state, is_best, filename="checkpoint.pth.tar"):
    torch.save(state, filename)  # finds HF009 HF018
    if is_best:
        shutil.copyfile(filename, "model_best.pth.tar")


def datasets():
    return []


def validate(model):
    return 0.5


if __name__ == "__main__":
    main()
