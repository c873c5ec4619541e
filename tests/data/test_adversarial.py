import pytest
import torch
from torch import nn
from torch.nn import functional

from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ImageSpec, ModelSpec
from mlp_dist.data.adversarial import adversarial

GRAY = ImageSpec(height=4, width=5, channels=1, mean=(0.3,), std=(0.2,))
COLOUR = ImageSpec(height=4, width=5, channels=3, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))


def pixels(image: ImageSpec, number: int = 6) -> torch.Tensor:
    """float32 from 0 to 1, black and white ones among them."""
    shape = (number, image.channels, image.height, image.width)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return values.mul(1.4).sub(0.2).clamp(0, 1)


@pytest.mark.parametrize("image", [GRAY, COLOUR], ids=["gray", "colour"])
def test_each_pixel_moves_by_eps_to_where_the_loss_rises_and_stays_within_the_range(image: ImageSpec) -> None:
    before = pixels(image)
    inputs = normalize(before, image)
    slopes = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    slopes[0] = 0
    found = adversarial(inputs, lambda moved: (moved * slopes).sum(), 0.1, image)
    expected = (before.flatten(1) + 0.1 * slopes.sign()).clamp(0, 1).view_as(before)
    torch.testing.assert_close(found, normalize(expected, image))
    assert torch.equal(found[0], inputs[0])
    torch.testing.assert_close(inputs, normalize(before, image))
    assert not inputs.requires_grad
    assert not found.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_the_model_errs_more_and_its_own_gradients_are_left_alone(autocast: bool) -> None:
    model = build_model(ModelSpec((20, 16, 3)), generator=torch.Generator().manual_seed(0))
    inputs, labels = normalize(pixels(GRAY, 30), GRAY), torch.arange(30) % 3

    def loss_of(moved: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return functional.cross_entropy(model(moved), labels, reduction="sum")

    losses = [loss_of(adversarial(inputs, loss_of, eps, GRAY)).item() for eps in (0.0, 0.05, 0.1)]
    assert losses[0] == pytest.approx(loss_of(inputs).item())
    assert losses[0] + 0.5 < losses[1] < losses[2] - 0.5
    assert all(parameter.grad is None for parameter in model.parameters())
    assert adversarial(inputs, loss_of, 0.1, GRAY).dtype == torch.float32


def test_an_empty_share_goes_through() -> None:
    model = nn.Linear(20, 3)
    inputs = torch.zeros(0, 20)
    found = adversarial(inputs, lambda moved: model(moved).sum(), 0.1, GRAY)
    assert found.shape == (0, 20)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same() -> None:
    inputs = normalize(pixels(COLOUR), COLOUR)
    slopes = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    expected = adversarial(inputs, lambda moved: (moved * slopes).sum(), 0.1, COLOUR)
    on_device = slopes.cuda()
    found = adversarial(inputs.cuda(), lambda moved: (moved * on_device).sum(), 0.1, COLOUR)
    torch.testing.assert_close(found.cpu(), expected)
