import base64
import io
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.bundle import Bundle, load_bundle
from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import KINDS, BundleSpec, ImageSpec, ModelSpec
from mlp_dist.data.image_set import Dataset
from serve.inference import explain as module
from serve.inference.request_errors import NotInstalledError, RequestError, TooManyImagesError
from serve.inference.explain import explain, heat_map
from tests.helpers.launching import Trained

CLASSES = ("cow", "cat", "dog")


def bundle_of(*hidden: int, kind: str = "module", channels: int = 1) -> Bundle:
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


def pixels_of(number: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 4, 5), dtype=torch.uint8, generator=generator)


def logits_of(bundle: Bundle, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = bundle.model(normalize(pixels, bundle.spec.image)).double()
    return found


def drawn(answer: dict[str, Any], picture: str = "heat_map") -> np.ndarray:
    head, _, data = answer[picture].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [None, 1])
def test_attributions_sum_to_what_sets_the_logit_off_from_a_black_image_s(
    kind: str, target: int | None
) -> None:
    bundle, pixels = bundle_of(64, 32, kind=kind), pixels_of(6)
    logits, black = logits_of(bundle, pixels), logits_of(bundle, torch.zeros_like(pixels[:1]))[0]
    answers = explain(bundle, pixels, target)
    for answer, row, probabilities in zip(answers, logits, bundle.probabilities(pixels), strict=True):
        number = int(row.argmax()) if target is None else target
        assert answer["class"] == CLASSES[number]
        assert answer["probability"] == pytest.approx(probabilities[number].item(), abs=1e-6)
        assert answer["logit"] == pytest.approx(row[number].item(), abs=1e-5)
        assert answer["baseline_logit"] == pytest.approx(black[number].item(), abs=1e-5)
        attributions, difference = np.array(answer["attributions"]), (row - black)[number].item()
        assert attributions.shape == (4, 5)
        assert attributions.sum() == pytest.approx(difference, abs=2e-3)
        assert answer["convergence_delta"] == pytest.approx(attributions.sum() - difference, abs=2e-5)
        assert np.abs(attributions).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_without_hidden_layers_they_are_weights_times_ink(kind: str) -> None:
    bundle, pixels = bundle_of(kind=kind, channels=3), pixels_of(2, 3)
    weight = next(bundle.model.parameters()).detach()
    row = (weight.T if kind == "tensor" else weight)[2]
    expected = row.view(3, 4, 5) * pixels / 255 / 0.4
    for answer, image in zip(explain(bundle, pixels, 2), expected, strict=True):
        torch.testing.assert_close(torch.tensor(answer["attributions"]), image, rtol=0, atol=2e-6)
        assert abs(answer["convergence_delta"]) < 1e-5


def test_floats_and_the_number_taken_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, pixels = bundle_of(64), pixels_of(3)
    expected = explain(bundle, pixels)
    for answer, other in zip(expected, explain(bundle, pixels.float() / 255), strict=True):
        np.testing.assert_allclose(answer["attributions"], other["attributions"], rtol=0, atol=1e-5)
    monkeypatch.setattr(module, "_NUMBERS", 20 * 7)
    for answer, other in zip(expected, explain(bundle, pixels), strict=True):
        np.testing.assert_allclose(answer["attributions"], other["attributions"], rtol=0, atol=1e-5)


def test_it_leaves_gradients_as_they_were_in_any_thread() -> None:
    bundle, pixels = bundle_of(64), pixels_of(2)
    expected, found = explain(bundle, pixels), []

    def ask() -> None:
        with torch.inference_mode():
            found.append(explain(bundle, pixels.clone()))
            assert torch.is_inference_mode_enabled()
        with torch.no_grad():
            found.append(explain(bundle, pixels))
            assert not torch.is_grad_enabled()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [expected, expected]
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in bundle.model.parameters())


def test_the_heat_map_is_red_where_a_pixel_speaks_for_the_class() -> None:
    pixels = torch.zeros(1, 4, 5, dtype=torch.uint8)
    pixels[0, 3, 4] = 255
    attributions = torch.zeros(4, 5)
    attributions[0, 0], attributions[1, 2] = 2.0, -2.0
    image = np.asarray(Image.open(io.BytesIO(heat_map(pixels, attributions))))
    assert image.shape == (4 * 56, 5 * 56, 3)
    red, blue, ink, black = image[0, 0], image[56, 2 * 56], image[-1, -1], image[-1, 0]
    assert red[0] > 2 * max(red[1:])
    assert blue[2] > 2 * max(blue[:2])
    assert len(set(ink)) == 1
    assert ink[0] > 100
    assert not black.any()
    assert np.array_equal(image[:56, :56], np.broadcast_to(red, (56, 56, 3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_is_the_pixels_that_the_model_saw(channels: int) -> None:
    pixels = pixels_of(2, channels)
    for asked in (pixels, pixels.float() / 255):
        for answer, image in zip(explain(bundle_of(8, channels=channels), asked), pixels, strict=True):
            expected = image[0] if channels == 1 else image.permute(1, 2, 0)
            np.testing.assert_array_equal(drawn(answer, "image"), expected)


def test_a_black_image_has_nothing_to_explain() -> None:
    [answer] = explain(bundle_of(8, channels=3), torch.zeros(1, 3, 4, 5, dtype=torch.uint8))
    assert not np.any(answer["attributions"])
    assert not drawn(answer).any()


def test_what_cannot_be_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(8)
    for target in (-1, 3):
        with pytest.raises(RequestError, match=f"there is no class {target}; there are 3"):
            explain(bundle, pixels_of(1), target)
    with pytest.raises(TooManyImagesError, match="33 images are to be explained; send at most 32"):
        explain(bundle, pixels_of(33))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(NotInstalledError, match="pip install captum"):
        explain(bundle, pixels_of(1))


@pytest.mark.slow
def test_of_a_trained_model(trained: Trained, image_data: Dataset) -> None:
    """The error is less than 0.5 % of what is explained; the ink explains the answer, not the paper."""
    bundle, pixels = load_bundle(trained.bundle), image_data.test.images[:20]
    for answer, image in zip(explain(bundle, pixels), pixels, strict=True):
        difference = answer["logit"] - answer["baseline_logit"]
        assert abs(answer["convergence_delta"]) < 0.005 * abs(difference)
        assert not np.array(answer["attributions"])[image[0].numpy() == 0].any()
        assert drawn(answer).shape == (280, 280, 3)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same() -> None:
    bundle, pixels = bundle_of(64), pixels_of(3)
    expected = explain(bundle, pixels)
    bundle.model.cuda()
    for answer, other in zip(expected, explain(bundle, pixels), strict=True):
        np.testing.assert_allclose(answer["attributions"], other["attributions"], rtol=0, atol=1e-4)
