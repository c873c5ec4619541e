import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.image_set import ImageSet
from mlp_dist.tracking.plots.grids import first_layer, mistakes_grid, predictions_grid, samples_grid
from mlp_dist.training.pictured import first, largest_units, mistakes
from tests.helpers.drawing import drawn, is_whole, random_images


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def images_of(figure: Figure) -> list[AxesImage]:
    """Those of a grid, each under its title."""
    images, texts = figure.axes[0].get_images(), figure.axes[0].texts
    for image, text in zip(images, texts, strict=True):
        left, right, _, top = image.get_extent()
        assert left < text.get_position()[0] < right
        assert 0 < top - text.get_position()[1] < 0.1
    return images


def shown(image: AxesImage) -> np.ndarray:
    return np.asarray(image.get_array())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", [1, 20, 50])
def test_grid_shows_prediction_probability_and_label(channels: int, number: int) -> None:
    images = torch.randint(
        0, 256, (number, channels, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(number) % 2
    probabilities = torch.tensor([[0.75, 0.25]], dtype=torch.float64).repeat(number, 1)
    figure = predictions_grid(images, labels, probabilities, ("cat", "dog"))
    assert len(titles(figure)) == min(number, 20)
    for position, (text, image) in enumerate(zip(figure.axes[0].texts, images_of(figure), strict=True)):
        assert text.get_text() == f"cat (75%)\ntrue: {('cat', 'dog')[position % 2]}"
        colour = "black" if position % 2 == 0 else "tab:red"
        assert to_rgb(text.get_color()) == to_rgb(colour)
        pixels = (
            images[position].permute(1, 2, 0).squeeze(2)
            if channels == 1
            else images[position].permute(1, 2, 0)
        )
        assert np.array_equal(shown(image), pixels.numpy())
    assert drawn(figure).std() > 0


def test_grid_of_another_size() -> None:
    images = torch.zeros(9, 1, 4, 4, dtype=torch.uint8)
    probabilities = torch.full((9, 2), 0.5)
    figure = predictions_grid(
        images, torch.zeros(9, dtype=torch.int64), probabilities, "ab", rows=2, columns=3
    )
    assert len(images_of(figure)) == 6
    corners = {tuple(image.get_extent()[::3]) for image in images_of(figure)}
    assert (len({left for left, _ in corners}), len({top for _, top in corners})) == (3, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_have_their_class_names(channels: int) -> None:
    images = random_images(7, channels)
    figure = samples_grid(images, torch.tensor([2, 0, 1, 1, 0, 2, 2]), ("cat", "$cow$", "dog"))
    names = ["dog", "cat", "$cow$", "$cow$", "cat", "dog", "dog"]
    assert titles(figure) == names
    for image, pixels in zip(images_of(figure), images, strict=True):
        assert np.array_equal(shown(image), pixels.permute(1, 2, 0).squeeze(2).numpy())
        assert image.get_clim() == (0, 255)
    assert drawn(figure).std() > 0


def test_samples_fill_the_grid_asked_for() -> None:
    figure = samples_grid(random_images(9), torch.zeros(9, dtype=torch.int64), "ab", rows=1, columns=1)
    assert titles(figure) == ["a"]


def test_long_names_are_shortened() -> None:
    long, longest = "eighteen letters..", "Staffordshire bull terrier"
    labels = torch.tensor([0, 1])
    figure = samples_grid(random_images(2), labels, (long, longest), rows=1, columns=2)
    assert titles(figure) == [long, "Staffordshire bul…"]
    figure = predictions_grid(random_images(1), labels, torch.eye(2), (longest, long), rows=1, columns=1)
    assert titles(figure) == ["Staffordshire bul… (100%)\ntrue: Staffordshire bul…"]


CONFIDENCE = [0.75, 0.5, 1.0, 0.75, 0.625, 1.0]
"""What answer 1 gets for each of six images, exactly: two ties, and one where both answers are equal."""


def doubted() -> torch.Tensor:
    return torch.tensor([[1 - value, value] for value in CONFIDENCE], dtype=torch.float64)


def test_the_most_confident_mistakes_come_first() -> None:
    images, labels = random_images(6), torch.tensor([0, 1, 0, 0, 0, 1])
    figure = mistakes_grid(*mistakes(ImageSet(images, labels), doubted()), ("cat", "dog"))
    assert titles(figure) == [
        "dog (100%)\ntrue: cat",
        "dog (75%)\ntrue: cat",
        "dog (75%)\ntrue: cat",
        "dog (62%)\ntrue: cat",
        "cat (50%)\ntrue: dog",
    ]
    for image, index in zip(images_of(figure), (2, 0, 3, 4, 1), strict=True):
        assert np.array_equal(shown(image), images[index, 0].numpy())
    assert drawn(figure).std() > 0


def test_the_grid_holds_only_the_first_mistakes() -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    figure = mistakes_grid(*mistakes(ImageSet(random_images(6), labels), doubted()), "ab", rows=1, columns=3)
    assert titles(figure) == ["b (100%)\ntrue: a", "b (100%)\ntrue: a", "b (75%)\ntrue: a"]


def test_no_mistakes_are_said_to_be_none() -> None:
    none = mistakes(ImageSet(random_images(2), torch.tensor([0, 1])), torch.eye(2))
    figure = mistakes_grid(*none, ("cat", "dog"))
    assert (figure.axes, [text.get_text() for text in figure.texts]) == ([], ["no mistakes"])
    assert drawn(figure).std() > 0


def image_spec(channels: int) -> ImageSpec:
    return ImageSpec(height=2, width=3, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)


def layer(units: int, channels: int) -> torch.Tensor:
    """Weights (units, channels * 2 * 3) whose norm grows with the unit's number."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (units, channels * 6), generator=generator) * 2.0 - 1
    return signs * torch.arange(1.0, units + 1).unsqueeze(1)


def test_gray_units_share_one_scale_around_zero() -> None:
    weights = layer(24, 1).requires_grad_()
    figure = first_layer(*largest_units(weights), image_spec(1))
    cells = images_of(figure)
    assert titles(figure) == [f"unit {23 - position}" for position in range(20)]
    for position, image in enumerate(cells):
        assert np.array_equal(shown(image), weights[23 - position].detach().reshape(2, 3).numpy())
        assert image.get_clim() == (-24, 24)
    assert figure.axes[1].get_ylabel() == "weight"
    negative, zero, positive = (cells[0].to_rgba(value)[:3] for value in (-24, 0, 24))
    assert negative[2] > negative[0]
    assert positive[0] > positive[2]
    assert min(zero) > 0.9
    assert is_whole(figure)


def test_rgb_units_are_gray_where_the_weight_is_zero() -> None:
    weights = layer(3, 3)
    weights[0] = 0
    figure = first_layer(*largest_units(weights), image_spec(3))
    assert titles(figure) == ["unit 2", "unit 1", "unit 0"]
    cells = images_of(figure)
    for image, unit in zip(cells, (2, 1, 0), strict=True):
        expected = 0.5 + weights[unit].reshape(3, 2, 3).permute(1, 2, 0) / 6
        assert np.array_equal(shown(image), expected.numpy())
    assert (shown(cells[0]).min(), shown(cells[0]).max()) == (0, 1)
    assert (shown(cells[2]) == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_of_zero_and_of_any_dtype_are_drawn(channels: int, dtype: torch.dtype) -> None:
    assert (
        drawn(
            first_layer(*largest_units(torch.zeros(10, channels * 6, dtype=dtype)), image_spec(channels))
        ).std()
        > 0
    )


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_drawn() -> None:
    images, answers = ImageSet(random_images(6), torch.tensor([0, 1, 0, 0, 0, 1])), doubted().cuda()
    for figure in (
        predictions_grid(*first(images, answers), "ab"),
        mistakes_grid(*mistakes(images, answers), "ab"),
        first_layer(*largest_units(layer(3, 1).cuda()), image_spec(1)),
    ):
        assert drawn(figure).std() > 0


def test_of_many_images_and_units_the_first_and_the_largest_are_sent() -> None:
    images = ImageSet(random_images(60), torch.arange(60) % 2)
    assert [len(each) for each in first(images, torch.full((60, 2), 0.5))] == [20, 20, 20]
    assert first(images)[1].tolist() == [0, 1] * 10
    assert [len(each) for each in mistakes(images, torch.eye(2).flip(0).repeat(30, 1))] == [20, 20, 20]
    assert [len(each) for each in largest_units(layer(24, 1))] == [20, 20]


@pytest.mark.parametrize("name", ["$5_to_$10", "a_b^c", r"\alpha", "%d {}", "x" * 30])
def test_class_names_are_shown_as_they_are(name: str) -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    assert drawn(predictions_grid(images, labels, torch.eye(2), (name, "other"))).std() > 0
