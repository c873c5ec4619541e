"""TorchServe's image_classifier with the model's mean and standard deviation, answering with all classes."""

import json
from pathlib import Path
from typing import Any

from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class Classifier(ImageClassifier):  # type: ignore[misc]
    def initialize(self, context: Any) -> None:
        super().initialize(context)
        directory = Path(context.system_properties["model_dir"])
        image = json.loads((directory / "bundle.json").read_text())["image"]
        self.image_processing = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(image["mean"], image["std"])]
        )
        self.topk = len(self.mapping)
