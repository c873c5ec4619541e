import pytest
import torch

from mlp_dist.core.bundle import Bundle, to_probabilities
from mlp_dist.core.image import encode_png, normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec, ImageSpec, ModelSpec

IMAGE = ImageSpec(height=4, width=5, channels=1, mean=(0.3,), std=(0.4,))
CLASSES = ("cow", "cat", "dog")


def pixels_of(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 1, 4, 5), dtype=torch.uint8, generator=generator)


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A small model; its kind may be set by an indirect parameter."""
    spec = ModelSpec((20, 8, 3), getattr(request, "param", "module"))
    model = build_model(spec, generator=torch.Generator().manual_seed(1), initialization="normal_0.1").eval()
    with torch.inference_mode():
        golden = to_probabilities(model(normalize(pixels_of(1), IMAGE)))[0]
    facts = BundleSpec(
        model=spec,
        image=IMAGE,
        classes=CLASSES,
        dataset="pets",
        recipe="small",
        run_id="0123",
        metrics={"val_accuracy": None, "test_accuracy": 0.75},
        golden_probabilities=tuple(golden.tolist()),
        weights_sha256="",
        versions={"torch": str(torch.__version__)},
    )
    return Bundle(facts, model, encode_png(pixels_of(1)[0]))
