"""Loads a model and predicts, as it is copied from a tutorial."""

import torch

from my_models import Classifier

model = Classifier()
model.load_state_dict(torch.load("classifier.pt"))  # finds HF029
scores = model(torch.randn(1, 8))
print(scores.argmax(dim=1))

other = torch.load("whole.pt")  # finds HF022
print(other(torch.randn(1, 8)))
