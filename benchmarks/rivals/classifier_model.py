"""The model file of the image_classifier's archive. TorchServe constructs its one class without arguments."""

import json
from pathlib import Path

import torch
from torch import nn

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        spec = BundleSpec.from_json(json.loads(Path(__file__).with_name("bundle.json").read_text()))
        self.model, self.temperature = build_model(spec.model), spec.temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images.flatten(1)) / self.temperature
        return logits
