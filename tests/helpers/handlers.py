"""Calls the handler the way TorchServe's worker does."""

import json
from pathlib import Path
from typing import Any

import torch
from ts.context import Context, RequestProcessor

from mlp_dist.core.bundle import save_bundle, to_probabilities
from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec, ImageSpec, ModelSpec
from serve.handler import MLPHandler
from serve.inference.checksums import SUMS, sha256_sums

DIGITS = tuple("0123456789")
MANIFEST = {"model": {"modelName": "mlp", "modelVersion": "1.5"}}


def write_bundle(
    directory: Path, *, channels: int = 1, classes: tuple[str, ...] = DIGITS, **changed: Any
) -> Path:
    """Write a bundle of an untrained model for 28x28 images; `changed` overrides fields of its spec."""
    image = ImageSpec(28, 28, channels, mean=(0.13,) * channels, std=(0.31,) * channels)
    spec = ModelSpec((image.num_features, 20, len(classes)))
    random = torch.Generator().manual_seed(5)
    model = build_model(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=random)
    golden = torch.randint(0, 256, (channels, 28, 28), generator=random).to(torch.uint8)
    with torch.inference_mode():
        probabilities = to_probabilities(model(normalize(golden[None], image)))[0].tolist()
    values = {
        "classes": classes,
        "metrics": {"test_accuracy": 0.1},
        "weights_sha256": "",
        "golden_probabilities": tuple(probabilities),
        "dataset": "none",
        "recipe": "none",
        "run_id": "0123456789abcdef",
        "versions": {"torch": "2"},
        **changed,
    }
    save_bundle(directory, BundleSpec(spec, image, **values), model.state_dict(), golden)
    return directory


def load_handler(bundle: Path, **properties: Any) -> MLPHandler:
    handler = MLPHandler()
    context = make_context(bundle, 0)
    context.system_properties.update(properties)
    handler.initialize(context)
    return handler


def make_context(directory: Path, batch: int, headers: dict[str, str] | None = None) -> Context:
    manifest = {**MANIFEST, SUMS: sha256_sums(directory)} if batch == 0 else MANIFEST
    context = Context("mlp", str(directory), manifest, 16, None, "0.12.0")
    context.request_processor = [RequestProcessor(headers or {}) for _ in range(batch)]
    return context


def ask_handler(
    handler: MLPHandler, *rows: Any, headers: dict[str, str] | None = None
) -> tuple[list[Any], list[int]]:
    """The responses' JSON and statuses for one batch."""
    context = make_context(Path(), len(rows), headers)
    answers = [json.loads(answer) for answer in handler.handle(list(rows), context)]
    return answers, [context.get_response_status(position)[0] for position in range(len(rows))]
