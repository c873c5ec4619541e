"""The handler, asked as TorchServe's worker asks it."""

import json
from pathlib import Path
from typing import Any

import torch
from ts.context import Context, RequestProcessor

from mlp_dist.core.bundle import save_bundle, to_probabilities
from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec, ImageSpec, ModelSpec
from serve.inference.checksums import SUMS, sha256_sums
from serve.handler import MLPHandler

DIGITS = tuple("0123456789")
MANIFEST = {"model": {"modelName": "mlp", "modelVersion": "1.5"}}


def write_bundle(
    directory: Path, *, channels: int = 1, classes: tuple[str, ...] = DIGITS, **changed: Any
) -> Path:
    """A bundle of a model that was not trained, for gray or RGB images of 28x28; `changed` is of its spec."""
    image = ImageSpec(28, 28, channels, mean=(0.13,) * channels, std=(0.31,) * channels)
    spec = ModelSpec((image.num_features, 20, len(classes)))
    random = torch.Generator().manual_seed(5)
    model = build_model(spec).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=random)
    golden = torch.randint(0, 256, (channels, 28, 28), generator=random).to(torch.uint8)
    with torch.inference_mode():
        probabilities = to_probabilities(model(normalize(golden[None], image)))[0].tolist()
    facts = {"dataset": "none", "recipe": "none", "run_id": "0123456789abcdef", "versions": {"torch": "2"}}
    values = {
        "classes": classes,
        "metrics": {"test_accuracy": 0.1},
        "weights_sha256": "",
        "golden_probabilities": tuple(probabilities),
        **facts,
        **changed,
    }
    save_bundle(directory, BundleSpec(spec, image, **values), model.state_dict(), golden)
    return directory


def loaded(bundle: Path) -> MLPHandler:
    handler = MLPHandler()
    handler.initialize(context(bundle, 0))
    return handler


def context(directory: Path, batch: int, headers: dict[str, str] | None = None) -> Context:
    manifest = {**MANIFEST, SUMS: sha256_sums(directory)} if batch == 0 else MANIFEST
    made = Context("mlp", str(directory), manifest, 16, None, "0.12.0")
    made.request_processor = [RequestProcessor(headers or {}) for _ in range(batch)]
    return made


def ask(
    handler: MLPHandler, *rows: Any, headers: dict[str, str] | None = None
) -> tuple[list[Any], list[int]]:
    made = context(Path(), len(rows), headers)
    answers = [json.loads(answer) for answer in handler.handle(list(rows), made)]
    for position in range(len(rows)):
        if not headers:
            assert made.get_response_content_type(position) == "application/json"
    return answers, [made.get_response_status(position)[0] for position in range(len(rows))]
