"""Helpers for tests of plots."""

import io

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels as uint8 (height, width, 3)."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def fits(figure: Figure) -> bool:
    """Whether nothing is drawn beyond the figure's edges."""
    figure.canvas.draw()
    box = figure.get_tightbbox()
    return box.min.min() >= 0 and bool((box.max <= figure.get_size_inches()).all())


def random_images(number: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, 6, 6), dtype=torch.uint8, generator=generator)
