import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from mlp_dist.core.errors import UsageError
from mlp_dist.tracking.plots.files import FORMATS, save
from mlp_dist.tracking.plots.grids import samples_grid
from tests.helpers.drawing import WINDOW, random_images, without_display
from tests.helpers.launching import ROOT, run

WHY_NOT_TK = "Cannot load backend 'TkAgg' which requires the 'tk' interactive framework, as 'headless' is"
try:
    import tkinter  # noqa: F401
except ImportError as error:  # A distribution's own Python often has it in a package of its own.
    WHY_NOT_TK = str(error)


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


SHOW = """
import torch
from mlp_dist.core.errors import UsageError
from mlp_dist.figures import samples_grid, show

try:
    show(samples_grid(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2, ("cat", "dog")))
except UsageError as error:
    raise SystemExit(f"UsageError: {error}")
"""


@pytest.mark.slow
def test_a_window_gets_the_figure_and_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_display(monkeypatch)
    (tmp_path / "window.py").write_text(WINDOW)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    words = [sys.executable, "-W", "error", "-c", SHOW]
    done = run(words, tmp_path, MPLBACKEND="module://window", PYTHONPATH=paths)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "shown.json").read_text()) == {"titles": ["cat", "dog"] * 10, "block": True}


def test_letters_that_the_font_lacks_cost_no_warning(tmp_path: Path) -> None:
    figure = Figure()
    figure.suptitle("\u65e5\u672c")
    save(figure, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a display is always there")
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("", "its backend is agg, which it takes where there is no display or no toolkit such as tkinter"),
        ("agg", "its backend is agg, which it takes where there is no display or no toolkit such as tkinter"),
        ("TkAgg", WHY_NOT_TK),
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
