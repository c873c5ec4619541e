"""TorchServe's image_classifier, told the pictures' mean and std and to name all the classes."""

import json
from pathlib import Path
from typing import Any

from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class Stock(ImageClassifier):  # type: ignore[misc]
    def initialize(self, context: Any) -> None:
        super().initialize(context)
        directory = Path(context.system_properties["model_dir"])
        image = json.loads((directory / "bundle.json").read_text())["image"]
        self.image_processing = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(image["mean"], image["std"])]
        )
        self.topk = len(self.mapping)
