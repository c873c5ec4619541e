import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import streaming
from benchmarks.streaming import Epoch, moved, ratio, write_set
from mlp_dist.core.errors import UsageError
from mlp_dist.data.arrays import read_arrays
from mlp_dist.data.image_set import ImageSet
from tests.helpers.launching import ROOT, run


def test_images_are_moved_by_a_little_each_in_its_own_way() -> None:
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:18, 10:18] = 255
    found = moved(images, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8
    assert len(found.unique(dim=0)) == 200
    assert found.sum(dim=(1, 2, 3)).double().mean() == pytest.approx(64 * 255, rel=0.01)
    columns = (found.double().sum(dim=(1, 2)) * torch.arange(28)).sum(dim=1) / found.sum(dim=(1, 2, 3))
    assert -3.7 < (columns - 13.5).min() < -2 < 2 < (columns - 13.5).max() < 3.7


def test_a_set_is_written_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 70)
    draw = torch.Generator().manual_seed(0)
    part = ImageSet(
        torch.randint(0, 256, (100, 1, 28, 28), dtype=torch.uint8, generator=draw), torch.arange(100) % 10
    )
    write_set((part, part[:50]), 250, tmp_path)
    data = read_arrays(tmp_path)
    assert (len(data.train), len(data.test)) == (250, 50)
    assert torch.equal(data.train.labels, torch.arange(250) % 10)
    assert abs((data.train.images.double().mean() - part.images.double().mean()).item()) < 30
    assert data.train.images.flatten(1).sum(dim=1).min() > 0


def test_the_ratio_is_formed_within_a_round() -> None:
    def epochs(*seconds: float) -> list[Epoch]:
        return [Epoch(each, 0.0, 1, 0.9) for each in seconds]

    assert ratio({"on disk": epochs(1, 20, 3), "in memory": epochs(1, 10, 2)}) == 1.5
    assert ratio({"on disk": epochs(1)}) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "rounds is 0; it must be 1 or more"),
        (["--images", "5", "60000"], "images is 5; it must be 1000 or more"),
        (
            ["--images", str(10**12)],
            "1,000,000,000,000 images need 785000.3 GB, but .* has .* GB free; name another",
        ),
    ],
)
def test_wrong_use(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["streaming", *flags])
    with pytest.raises(UsageError, match=message):
        streaming.parse()


@pytest.mark.slow
def test_a_small_set_is_streamed_and_removed(mnist_dir: Path, tmp_path: Path) -> None:
    flags = ["--images", "2000", "--rounds", "1", "--data-dir", str(mnist_dir)]
    done = run([sys.executable, "-m", "benchmarks.streaming", *flags], ROOT, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    [row] = result["sets"]
    assert (result["benchmark"], row["images"]) == ("streaming", 2000)
    assert row["ratio"] > 0
    for kind in ("on disk", "in memory"):
        [epoch] = row[kind]
        assert epoch["peak_bytes"] > 10**7
        assert epoch["test_accuracy"] > 0.3
    assert list(tmp_path.glob("streaming-*")) == []
