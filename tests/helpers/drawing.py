"""What tests of pictures share."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image


def drawn(figure: Figure) -> np.ndarray:
    """The figure's pixels, as a PNG file has them."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def is_whole(figure: Figure) -> bool:
    """Whether nothing of it stands beyond its edges."""
    figure.canvas.draw()
    drawn = figure.get_tightbbox()
    return drawn.min.min() >= 0 and bool((drawn.max <= figure.get_size_inches()).all())


def random_images(number: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 6, 6), dtype=torch.uint8, generator=generator)


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


def without_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
