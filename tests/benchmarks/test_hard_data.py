import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.hard_data import CASES, hardened
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.batches import generator
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.recipes import get_recipe
from tests.helpers.launching import ROOT, run


def train_set(of_each: int = 1000) -> ImageSet:
    """Each image's first pixel is its label."""
    labels = torch.arange(10).repeat(of_each)
    return ImageSet(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone(), labels)


def made(case: str, seed: int = 0) -> ImageSet:
    return CASES[case](train_set(), generator(seed))


@pytest.mark.parametrize("percent", [20, 40])
def test_so_many_labels_are_wrong_and_the_images_stay(percent: int) -> None:
    train, found = train_set(), made(f"labels {percent}% wrong")
    assert torch.equal(found.images, train.images)
    wrong = found.labels != train.labels
    assert wrong.sum() == 10_000 * percent // 100
    counts = torch.bincount(((found.labels - train.labels) % 10)[wrong], minlength=10)
    expected = wrong.sum() / 9
    assert counts[0] == 0
    assert (counts[1:] - expected).abs().max() < 5 * expected**0.5
    assert (torch.bincount(train.labels[wrong]) - wrong.sum() / 10).abs().max() < 5 * (
        wrong.sum() / 10
    ) ** 0.5


@pytest.mark.parametrize(
    ("case", "counts"),
    [
        ("as it is", [1000] * 10),
        ("classes down to 1%", [1000, 599, 359, 215, 129, 77, 46, 28, 17, 10]),
        ("10 images a class", [10] * 10),
    ],
)
def test_each_class_keeps_so_many_of_its_own_images(case: str, counts: list[int]) -> None:
    found = made(case)
    assert torch.bincount(found.labels).tolist() == counts
    assert torch.equal(found.images[:, 0, 0, 0].long(), found.labels)


def data_of(train: ImageSet) -> Dataset:
    image = ImageSpec(height=2, width=2, channels=1, mean=(0.5,), std=(0.5,))
    return Dataset("mnist", "MNIST", image, tuple("0123456789"), train, train, known_digest="of another set")


@pytest.mark.parametrize("case", CASES)
def test_the_images_are_the_same_each_time_and_the_rest_is_as_it_was(case: str) -> None:
    train = train_set()
    train.images[:, 0, 1, 1] = torch.arange(10_000) % 251
    data = data_of(train)
    one, other = (hardened(replace(get_recipe("mnist"), seed=seed), data, case)[1] for seed in (1, 2))
    assert torch.equal(one.train.images, other.train.images)
    assert torch.equal(one.train.labels, other.train.labels)
    assert one.test is data.test
    assert one.digest() != data.digest()


@pytest.mark.parametrize(("case", "epochs"), [("as it is", 10), ("10 images a class", 1000)])
def test_few_images_are_seen_more_often_and_none_are_held_out(case: str, epochs: int) -> None:
    config, hard = hardened(get_recipe("mnist"), data_of(train_set()), case)
    assert (config.epochs, config.val_size) == (epochs, 0)
    assert len(hard.train) in (10_000, 100)


@pytest.mark.slow
def test_the_last_line_is_json(mnist_dir: Path) -> None:
    cases = ["10 images a class", "classes down to 1%"]
    flags = ["--recipes", "mnist-logistic", "--seeds", "1", "--epochs", "1", "--data-dir", str(mnist_dir)]
    done = run([sys.executable, "-m", "benchmarks.hard_data", *flags, "--cases", *cases], ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["seeds"]) == ("hard_data", 1)
    found = [(row["case"], row["recipe"], row["images"], row["epochs"]) for row in result["rows"]]
    assert found == [(cases[0], "mnist-logistic", 100, 1000), (cases[1], "mnist-logistic", 15208, 7)]
    assert all(len(row["accuracies"]) == 1 and 0.5 < row["mean"] < 0.95 for row in result["rows"])
    assert cases[0] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "seeds is 0; it must be 1 or more"),
        (["--cases", "labels 20%"], "unknown case 'labels 20%'; did you mean labels 20% wrong?"),
    ],
)
def test_wrong_use(flags: list[str], message: str) -> None:
    done = run([sys.executable, "-m", "benchmarks.hard_data", *flags], ROOT)
    assert done.returncode == 2
    assert message in done.stderr
