"""Starts from somebody else's weights, fine-tunes, and quantizes what came of it."""

import torch
import torchvision
from torch import nn

net = torchvision.models.resnet50()
net.fc = nn.Linear(2048, 7)

pretrained = torch.load("pretrained.pth", map_location="cpu")["state_dict"]
pretrained = {k.replace("module.", ""): v for k, v in pretrained.items()}  # finds HF026
own = net.state_dict()
kept = {k: v for k, v in pretrained.items() if k in own and v.size() == own[k].size()}  # finds HF025
own.update(kept)
net.load_state_dict(own)

teacher = torchvision.models.resnet50()
teacher.load_state_dict(torch.load("teacher.pth", map_location="cpu"), strict=False)  # finds HF024

try:
    net.load_state_dict(torch.load("previous.pth", map_location="cpu"))  # finds HF027
except Exception:
    print("no previous weights that fit")

optimizer = torch.optim.Adam(net.parameters())
states = []
for epoch in range(10):
    loss = nn.functional.cross_entropy(net(torch.randn(2, 3, 224, 224)), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    states.append(net.state_dict())  # finds HF001

torch.save({k: v.half() for k, v in net.state_dict().items()}, "half.pth")  # finds HF006
torch.save({"weights": net.state_dict(), "final_loss": loss}, "outputs/final.pth")  # finds HF004 HF011
quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
torch.save(quantized.state_dict(), "outputs/int8.pth")  # finds HF007 HF011
torch.jit.trace(net, torch.randn(1, 3, 224, 224)).save("net.ts")  # finds HF008
