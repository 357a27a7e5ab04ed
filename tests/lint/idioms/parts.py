"""Right lines that look like wrong ones."""

import io
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


def federated(clients):
    states = []
    for client in clients:
        states.append(client.state_dict())  # each is another model's
    return states


def to_memory(model):
    buffer = io.BytesIO()
    for _ in range(3):
        buffer.seek(0)
        torch.save(model.state_dict(), buffer)
    return buffer


def unwrapped(model, path):
    model = nn.DataParallel(model)
    torch.save(model.module.state_dict(), path)


def perhaps_unwrapped(model, path):
    if torch.cuda.device_count() > 1:
        model = nn.DataParallel(model)
    torch.save(model.module.state_dict() if hasattr(model, "module") else model.state_dict(), path)


def without_prefix(state):
    state = {name.removeprefix("module."): value for name, value in state.items()}
    return {k.replace("module.", "", 1) if k.startswith("module.") else k: v for k, v in state.items()}


def text(line):
    return line.replace("module.", "module/").replace("model.", "the ")


def seen(model, state):
    result = model.load_state_dict(state, strict=False)
    print(result.missing_keys, result.unexpected_keys)
    own = model.state_dict()
    kept = {k: v for k, v in state.items() if k in own}
    print(f"{len(kept)} of {len(own)}")
    model.load_state_dict({**own, **kept})


def refused(model, state):
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise SystemExit("does not fit") from error
    try:
        model.load_state_dict(torch.load("a.pt", map_location="cpu"))
    except FileNotFoundError:
        print("from scratch")


def on_one_rank(model, rank, path):
    dist.init_process_group("gloo")
    if rank == 0:
        torch.save(model.state_dict(), path)
    if dist.get_rank() != 0:
        return
    torch.save(model.state_dict(), path)


def numbered(folder):
    files = sorted(Path(folder).glob("*.txt"))
    by_step = max(Path(folder).glob("step_*.pt"), key=lambda file: int(file.stem.split("_")[1]))
    newest_log = max(Path(folder).glob("*.log"), key=os.path.getmtime)
    return files[-1], by_step, newest_log


def deleted_after(model, old):
    torch.save(model.state_dict(), f"model_{time.time()}.pt")
    os.remove(old)


def modes(model, x, y):
    model.eval()
    before = model(x)
    model.train()
    return before, y


def same_kind(state, model):
    model.load_state_dict(torch.load("a.pt", map_location="cpu", weights_only=True))
    model.eval()
    return model(state)


def quantized_both_ways(net):
    q = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    torch.save(q.state_dict(), "q.pt")
    q2 = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    q2.load_state_dict(torch.load("q.pt", map_location="cpu"))


def traced(model, x):
    model.eval()
    return torch.jit.trace(model, x)


def scheduler_goes_on(model, epoch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.load_state_dict(torch.load("o.pt", map_location="cpu"))
    return torch.optim.lr_scheduler.StepLR(optimizer, 10, last_epoch=epoch - 1)


def not_a_model(model, x):
    features = model(x)
    torch.save(features, "features.pt")
    best_model = "resnet50"
    best_path = os.path.join("a", best_model)
    return best_path


def best_is_saved_at_once(model, epoch):
    best_state = model.state_dict()
    torch.save(best_state, f"{epoch}.pt")


class FromMemory:
    def load(self, files, where):
        for file in files:
            self.state = torch.load(file, map_location=where)


def searched(rates, loader):
    best, best_model, best_state = 0.0, None, None
    for rate in rates:
        model = nn.Linear(8, 2)  # a new one for each rate
        accuracy = fit(model, rate, loader)
        if accuracy > best:
            best, best_model, best_state = accuracy, model, model.state_dict()
            best_again = model
            best_state_again = model.state_dict()
    return best_model, best_state, best_again, best_state_again


def fit(model, rate, loader):
    return rate


def rotated(model, old_checkpoints, step):
    if len(old_checkpoints) > 3:
        os.remove(old_checkpoints.pop(0))
        os.remove(old_checkpoints[0])
    torch.save(model.state_dict(), f"step_{step}.pt")


def changed_copies(model, loss):
    loss.backward()
    best_half = {k: v.half() for k, v in model.state_dict().items()}
    best_scaled = {k: v * 2 for k, v in model.state_dict().items()}
    best_names = list(model.state_dict())
    best_count = len(model.state_dict())
    initial_sum = sum(v.sum() for v in model.state_dict().values())
    return best_half, best_scaled, best_names, best_count, initial_sum
