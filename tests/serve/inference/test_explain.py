import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.bundle import Bundle
from mlp_dist.core.image import normalize
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec, ImageSpec, ModelSpec
from serve.inference.explain import explain, heat_map
from serve.inference.limits import Budget, TooManyImagesError

CLASSES = ("cow", "cat", "dog")


def make_bundle(*hidden: int, kind: str = "module", channels: int = 1) -> Bundle:
    image = ImageSpec(4, 5, channels, mean=(0.3,) * channels, std=(0.4,) * channels)
    model = ModelSpec((image.num_features, *hidden, len(CLASSES)), kind)
    spec = BundleSpec(
        model=model,
        image=image,
        classes=CLASSES,
        dataset="pets",
        recipe="small",
        run_id="0123",
        metrics={},
        golden_probabilities=(0.2, 0.3, 0.5),
        weights_sha256="",
        versions={},
        temperature=2.0,
    )
    return Bundle(spec, build_model(model, generator=torch.Generator().manual_seed(1)).eval(), b"")


def make_pixels(number: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 4, 5), dtype=torch.uint8, generator=generator)


def logits_of(bundle: Bundle, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = bundle.model(normalize(pixels, bundle.spec.image)).double()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_sum_to_the_difference_of_logits(kind: str) -> None:
    bundle, pixels = make_bundle(64, 32, kind=kind), make_pixels(6)
    logits, black = logits_of(bundle, pixels), logits_of(bundle, torch.zeros_like(pixels[:1]))[0]
    answers = explain(bundle, pixels, Budget(100))
    for answer, row, probabilities in zip(answers, logits, bundle.probabilities(pixels), strict=True):
        number = int(row.argmax())
        assert answer["class"] == CLASSES[number]
        assert answer["probability"] == pytest.approx(probabilities[number].item(), abs=1e-6)
        attributions, difference = np.array(answer["attributions"]), (row - black)[number].item()
        assert attributions.shape == (4, 5)
        assert attributions.sum() == pytest.approx(difference, abs=2e-3)
        assert answer["convergence_delta"] == pytest.approx(attributions.sum() - difference, abs=2e-5)
        assert np.abs(attributions).max() > 0.01


def test_linear_colour_model_in_inference_mode() -> None:
    """Attributions are weights times pixels, of integers and of floats."""
    bundle, pixels = make_bundle(channels=3), make_pixels(2, 3)
    weights = dict(zip(CLASSES, next(bundle.model.parameters()).detach(), strict=True))
    with torch.inference_mode():
        answers = [*explain(bundle, pixels, Budget(100)), *explain(bundle, pixels.float() / 255, Budget(100))]
    for answer, image in zip(answers, [*pixels, *pixels], strict=True):
        expected = weights[answer["class"]].view(3, 4, 5) * image / 255 / 0.4
        torch.testing.assert_close(torch.tensor(answer["attributions"]), expected, rtol=0, atol=2e-6)
        head, _, data = answer["image"].partition(",")
        assert head == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(shown, image.permute(1, 2, 0))


def test_heat_map_is_red_above_zero_and_blue_below() -> None:
    pixels = torch.zeros(1, 4, 5, dtype=torch.uint8)
    pixels[0, 3, 4] = 255
    attributions = torch.zeros(4, 5)
    attributions[0, 0], attributions[1, 2] = 2.0, -2.0
    image = np.asarray(Image.open(io.BytesIO(heat_map(pixels, attributions))))
    assert image.shape == (4 * 56, 5 * 56, 3)
    red, blue, black = image[0, 0], image[56, 2 * 56], image[-1, 0]
    assert red[0] > 2 * max(red[1:])
    assert blue[2] > 2 * max(blue[:2])
    assert not black.any()


def test_time_for_the_first_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # The images would not fit alone either.
    monkeypatch.setattr("serve.inference.limits.BATCH_SECONDS", 0.0)
    with pytest.raises(TooManyImagesError, match="the request has 3 images, of which 1 fit"):
        explain(make_bundle(8), make_pixels(3), Budget(0))
    assert len(explain(make_bundle(8), make_pixels(1), Budget(0))) == 1


@pytest.mark.gpu
def test_gpu_gives_the_same() -> None:
    bundle, pixels = make_bundle(64), make_pixels(3)
    expected = explain(bundle, pixels, Budget(100))
    bundle.model.cuda()
    for answer, other in zip(expected, explain(bundle, pixels, Budget(100)), strict=True):
        np.testing.assert_allclose(answer["attributions"], other["attributions"], rtol=0, atol=1e-4)
