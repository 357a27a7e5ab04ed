"""Models as tutorials have them, without stubs, and the process that builds their quantized files again."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn
from torch.nn import functional

import holdfast


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class LeNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.config = {"classes": classes}
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(256, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(torch.flatten(x, 1))))


class Classifier(nn.Module):
    """Words to one of two classes, by a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(12, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.embedding(words))
        return self.fc(out[:, -1])


class Recurrent(nn.Module):
    """One of each of the other recurrent layers that are quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6)
        self.lstm_cell = nn.LSTMCell(6, 5)
        self.gru_cell = nn.GRUCell(5, 4)
        self.rnn_cell = nn.RNNCell(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = self.gru(x)[0][-1]
        return self.rnn_cell(self.gru_cell(self.lstm_cell(last)[0]))


class Functional(nn.Module):
    """Weights that no layer holds: a traced module packs them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(2, 1, 3, 3))
        self.up = nn.ConvTranspose2d(2, 1, 2)
        self.weight = nn.Parameter(torch.randn(4, 81))
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(functional.conv2d(x, self.filters, None, (1, 1), (0, 0), (1, 1), 1))
        return functional.linear(torch.flatten(x, 1), self.weight) + self.shift


class Branching(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


MODELS = {cls.__name__: cls for cls in (Mlp, LeNet, Classifier, Recurrent, Functional)}


def example_for(name: str) -> torch.Tensor:
    made = torch.Generator().manual_seed(7)
    if name == "Classifier":
        return torch.randint(0, 20, (3, 5), generator=made)
    shape = {"Mlp": (5, 16), "LeNet": (3, 1, 28, 28), "Recurrent": (4, 2, 8), "Functional": (3, 1, 10, 10)}[name]
    return torch.randn(shape, generator=made)


def main() -> None:
    """Builds each file named in the list that is given, and says the bits of its answers."""
    torch.set_num_threads(1)
    answers = {}
    for file, name in json.loads(sys.argv[1]):
        built = holdfast.build(file, factory=MODELS.get(name))
        with torch.no_grad():
            answer = built(example_for(name if name in MODELS else "Mlp"))
        answers[file] = [answer.flatten().tolist(), built.training, type(built).__name__]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
