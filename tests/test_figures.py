import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import ROOT, run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from mlp_dist.core.errors import UsageError
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.dataset import ImageSet
from mlp_dist.figures import (
    FORMATS,
    confusion_matrix,
    first_layer,
    learning_curves,
    mistakes_grid,
    predictions_grid,
    samples_grid,
    save,
)
from mlp_dist.pictured import first, largest_units, mistakes


def drawn(figure: Figure) -> np.ndarray:
    """The figure's pixels, as a PNG file has them."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def records(number: int, *, validation: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 1 / (epoch + 1),
            "val_loss": 1.1 / epoch if validation else None,
            "val_accuracy": 1 - 1.1 / (epoch + 1) if validation else None,
        }
        for epoch in range(1, number + 1)
    ]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("number", [1, 2, 30])
def test_curves_show_every_epoch(number: int) -> None:
    history = records(number)
    figure = learning_curves(history, kept_epoch=number)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert legend(axes) == ["train", "val", f"kept: epoch {number}"]
        train, val, kept = axes.get_lines()
        for line, part in ((train, "train"), (val, "val")):
            assert list(line.get_xdata()) == list(range(1, number + 1))
            assert list(line.get_ydata()) == [record[f"{part}_{name}"] for record in history]
        assert set(kept.get_xdata()) == {number}
    assert drawn(figure).std() > 0
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_curves_without_validation() -> None:
    figure = learning_curves(records(3, validation=False), kept_epoch=3)
    assert [legend(axes) for axes in figure.axes] == [["train", "kept: epoch 3"]] * 2
    assert drawn(figure).std() > 0


def test_confusion_shows_counts_shares_and_accuracy() -> None:
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [3, 1, 6]])
    figure = confusion_matrix(counts, ("cat", "cow", "dog"))
    axes = figure.axes[0]
    assert axes.get_title() == "test accuracy 70.00%"
    shown = {(*map(round, text.get_position()),): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "8", (1, 0): "2", (0, 2): "3", (1, 2): "1", (2, 2): "6"}
    (image,) = axes.get_images()
    expected = [[0.8, 0.2, 0], [0, 0, 0], [0.3, 0.1, 0.6]]
    assert np.allclose(np.ma.filled(image.get_array(), np.nan), expected)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["cat", "cow", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert drawn(figure).std() > 0


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_confusion_of_many_classes(classes: int) -> None:
    counts = torch.full((classes, classes), 1) + 99 * torch.eye(classes, dtype=torch.int64)
    assert drawn(confusion_matrix(counts, [f"class number {name}" for name in range(classes)])).std() > 0


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


@pytest.mark.parametrize("name", ["$5_to_$10", "a_b^c", r"\alpha", "%d {}", "x" * 30])
def test_class_names_are_shown_as_they_are(name: str) -> None:
    classes = (name, "other")
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    assert drawn(confusion_matrix(torch.tensor([[3, 1], [0, 4]]), classes)).std() > 0
    assert drawn(predictions_grid(images, labels, torch.eye(2), classes)).std() > 0


def test_curves_show_the_test_set_beside_the_others() -> None:
    history = [
        {**record, "test_loss": 2 / record["epoch"], "test_accuracy": 0.5 + record["epoch"] / 10}
        for record in records(3)
    ]
    for axes, name in zip(learning_curves(history, kept_epoch=2).axes, ("loss", "accuracy"), strict=True):
        assert legend(axes) == ["train", "val", "test", "kept: epoch 2"]
        lines = axes.get_lines()
        assert list(lines[2].get_xdata()) == [1, 2, 3]
        assert list(lines[2].get_ydata()) == [record[f"test_{name}"] for record in history]
        assert len({to_rgb(line.get_color()) for line in lines}) == 4


def test_curves_begin_where_the_values_do() -> None:
    history = [{**record, "test_loss": None, "test_accuracy": None} for record in records(2)]
    assert [legend(axes) for axes in learning_curves(history, 1).axes] == [
        ["train", "val", "kept: epoch 1"]
    ] * 2
    history += [{**records(3)[2], "test_loss": 0.25, "test_accuracy": 0.75}]
    for axes, value in zip(learning_curves(history, 1).axes, (0.25, 0.75), strict=True):
        train, _, test, _ = axes.get_lines()
        assert list(train.get_xdata()) == [1, 2, 3]
        assert (list(test.get_xdata()), list(test.get_ydata())) == ([3], [value])


def random_images(number: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 6, 6), dtype=torch.uint8, generator=generator)


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
    assert drawn(figure).std() > 0


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


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("new/grid.png", b"\x89PNG"),
        ("grid", b"\x89PNG"),
        ("grid.PNG", b"\x89PNG"),
        ("grid.jpg", b"\xff\xd8"),
        ("grid.pdf", b"%PDF"),
        ("grid.svg", b"<?xml"),
        ("grid.webp", b"RIFF"),
    ],
)
def test_a_figure_is_saved_as_its_suffix_says(tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / name
    save(samples_grid(random_images(2), torch.tensor([0, 1]), "ab", rows=1, columns=2), path)
    assert path.read_bytes().startswith(head)
    assert list(path.parent.iterdir()) == [path]


def test_every_format_named_can_be_written(tmp_path: Path) -> None:
    figure = samples_grid(random_images(1), torch.tensor([0]), "a", rows=1, columns=1)
    for suffix in FORMATS:
        save(figure, tmp_path / f"grid.{suffix}")
    assert len(list(tmp_path.iterdir())) == len(FORMATS)


def test_a_suffix_of_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        save(Figure(), tmp_path / "new" / "grid.doc")
    assert str(raised.value) == (
        f"a picture cannot be written to {tmp_path}/new/grid.doc: "
        "its suffix must be one of .jpeg, .jpg, .pdf, .png, .svg, .webp"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        save(Figure(), tmp_path)
    assert (
        str(raised.value) == f"{tmp_path} is a directory; name the picture's file, as {tmp_path}/picture.png"
    )


def test_a_failed_drawing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail(self: Figure, file: Path, **options: Any) -> None:
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="full"):
        save(Figure(), path)
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"old")]


WINDOW = """
import json
from pathlib import Path

from matplotlib import pyplot
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg


class Manager(FigureManagerBase):
    @classmethod
    def pyplot_show(cls, *, block=None):
        (number,) = pyplot.get_fignums()
        figure = pyplot.figure(number)
        figure.canvas.draw()
        titles = [text.get_text() for text in figure.axes[0].texts]
        Path("shown.json").write_text(json.dumps({"titles": titles, "block": block}))


class FigureCanvas(FigureCanvasAgg):
    manager_class = Manager
"""
"""A window for matplotlib that writes down what it was to show."""

SHOW = """
import torch
from mlp_dist.core.errors import UsageError
from mlp_dist.figures import samples_grid, show

try:
    show(samples_grid(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2, ("cat", "dog")))
except UsageError as error:
    raise SystemExit(f"UsageError: {error}")
"""


def without_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_a_window_gets_the_figure_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_display(monkeypatch)
    (tmp_path / "window.py").write_text(WINDOW)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    words = [sys.executable, "-W", "error", "-c", SHOW]
    done = run(words, tmp_path, MPLBACKEND="module://window", PYTHONPATH=paths)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "shown.json").read_text()) == {"titles": ["cat", "dog"] * 10, "block": True}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a display is always there")
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("", "its backend is agg, which it takes where there is no display or no toolkit such as tkinter"),
        ("agg", "its backend is agg, which it takes where there is no display or no toolkit such as tkinter"),
        (
            "TkAgg",
            "Cannot load backend 'TkAgg' which requires the 'tk' interactive framework, as 'headless' is",
        ),
    ],
)
def test_no_display_is_told_with_what_to_do(
    backend: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_display(monkeypatch)
    done = run([sys.executable, "-c", SHOW], tmp_path, MPLBACKEND=backend, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"UsageError: matplotlib cannot open a window: {reason}")
    assert done.stderr.endswith("; write the picture to a file: --output FILE\n")


@pytest.mark.slow
def test_a_backend_that_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_display(monkeypatch)
    done = run([sys.executable, "-c", SHOW], tmp_path, MPLBACKEND="module://nowhere", PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "UsageError: matplotlib cannot open a window: No module named 'nowhere'; "
        "write the picture to a file: --output FILE\n"
    )


def test_a_confusion_of_very_many_classes_stays_small() -> None:
    figure = confusion_matrix(torch.eye(1000, dtype=torch.int64), [f"class {n}" for n in range(1000)])
    axes = figure.axes[0]
    assert max(figure.get_size_inches()) < 30
    assert len(axes.texts) == 0
    assert axes.images[0].get_array().shape == (1000, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.not_there", "foo"])
def test_a_backend_that_is_not_there_hinders_no_file(backend: str, tmp_path: Path) -> None:
    code = (
        "import os, torch; from mlp_dist import figures; from pathlib import Path\n"
        "grid = figures.samples_grid(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), ['a'])\n"
        "figures.save(grid, Path('grid.png'))\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
        "from mlp_dist.core.errors import UsageError\n"
        "try: figures.show(grid)\n"
        "except UsageError as error: print(error)\n"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib cannot open a window" in done.stdout
