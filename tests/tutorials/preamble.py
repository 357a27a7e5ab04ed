"""What every block begins with: the small net of docs/recipes.md, an optimizer, a scheduler, random images."""

import argparse  # noqa: F401
import zipfile

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import holdfast  # noqa: F401


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images):
        maps = self.pool(self.conv1(images).relu())
        maps = self.pool(self.conv2(maps).relu())
        hidden = self.dropout(self.fc1(maps.flatten(1)).relu())
        return self.fc3(self.fc2(hidden).relu())


def from_gpu(tree, file):
    """Writes the file that torch.save writes on a machine with a GPU: its tensors say that they lived on cuda:0."""
    torch.save(tree, "on_the_cpu.pt")
    with zipfile.ZipFile("on_the_cpu.pt") as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)


torch.manual_seed(0)
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
