from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlp_dist import recipes
from mlp_dist.cli import train
from mlp_dist.config import OPTIONS
from mlp_dist.core.bundle import count_parameters
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.recipes import PUBLISHED, RECIPES, changes, get_recipe, recipe_table, training_command

TO_TENSOR, HALF = (0.0, 1.0), (0.5, 0.5)

TUTORIALS = {
    "mnist-logistic": ((), "module", "linear", TO_TENSOR, "sgd", 0.1, 100, 4, 7_850, None),
    "mnist-tensor": ((500,), "tensor", "normal_fan_in", TO_TENSOR, "sgd", 0.1, 100, 1, 397_510, 0.9272),
    "mnist-500": ((500,), "module", "linear", TO_TENSOR, "sgd", 0.1, 100, 1, 397_510, 0.9224),
    "mnist-500-4epochs": ((500,), "module", "linear", TO_TENSOR, "sgd", 0.1, 100, 4, 397_510, 0.9568),
    "mnist-500-slow": ((500,), "module", "linear", TO_TENSOR, "sgd", 0.01, 100, 4, 397_510, 0.9016),
    "mnist-500-normalized": ((500,), "module", "linear", HALF, "sgd", 0.01, 64, 5, 397_510, None),
    "mnist-tensor-normalized": ((500,), "tensor", "normal_0.01", HALF, "sgd", 0.01, 64, 5, 397_510, None),
    "mnist-100-adam": ((100,), "module", "linear", None, "adam", 0.01, 64, 5, 79_510, None),
    "mnist-scratch-256-64": (
        *((256, 64), "layers", "normal_0.1", TO_TENSOR),
        *("scratch-sgd", 0.01, 64, 15, 218_058, 0.9562),
    ),
    "mnist-128-64-adam": ((128, 64), "module", "linear", HALF, "adam", 0.001, 64, 20, 109_386, 0.9733),
}
"""Hidden sizes, model, initialization, normalize, optimizer, lr, batch, epochs, parameters, published."""


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_are_as_published(name: str) -> None:
    config = get_recipe(name)
    model = build_model(ModelSpec((784, *config.hidden_sizes, 10), config.model))
    assert (
        *(config.hidden_sizes, config.model, config.initialization, config.normalize, config.optimizer),
        *(config.lr, config.batch_size, config.epochs, count_parameters(model), PUBLISHED.get(name)),
    ) == TUTORIALS[name]
    assert (config.dataset, config.val_size, config.image_size, config.seed) == ("mnist", 0, 28, 0)


def test_recipes_are_complete() -> None:
    best = {"folder", "mnist-best", "mnist-deformed", "mnist-deformed-full", "fashion-best"}
    assert set(RECIPES) == {"mnist", "mnist-quick", *TUTORIALS, *best}
    assert set(recipes.TUTORIALS) == set(TUTORIALS)
    for name, recipe in RECIPES.items():
        config = get_recipe(name)
        assert (config.recipe, config) == (name, get_recipe(name))
        assert config.dataset in CATALOG
        assert recipe.__doc__
        assert changes(config) == {}


def test_the_table_has_one_line_per_recipe() -> None:
    head, *lines = recipe_table().splitlines()
    assert head.split("  ")[0].strip() == "recipe"
    assert [line.split()[0] for line in lines] == list(RECIPES)
    scratch = lines[list(RECIPES).index("mnist-scratch-256-64")]
    built = ("784-256-64-10", "layers, normal_0.1")
    for part in (*built, "scratch-sgd 0.01", "epochs 15", "0.9562"):
        assert part in scratch


CHANGES: dict[str, Any] = {
    "dataset": "folder:/images of mine",
    "hidden_sizes": (20, 10),
    "model": "tensor",
    "initialization": "normal_0.01",
    "image_size": 20,
    "normalize": (-0.5, 0.25),
    "optimizer": "adam",
    "lr": 0.1 + 0.2,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "batch_size": 7,
    "accumulation_steps": 2,
    "clip_norm": 1.5,
    "weight_decay": 0.0001,
    "label_smoothing": 0.125,
    "dropout": 0.25,
    "augment_shift": 3,
    "deform": 0.75,
    "restyle": 0.5,
    "adversarial": 0.05,
    "ema_decay": 0.999,
    "epochs": 9,
    "patience": 3,
    "seed": 2**62,
    "val_size": 77,
    "mixed_precision": "no",
    "gradient_dtype": "float64",
    "matmul_precision": "highest",
    "skip_bad_images": True,
}


@pytest.mark.parametrize(
    "changed",
    [
        CHANGES,
        {"hidden_sizes": (), "normalize": None, "compile": True, "val_size": 0},
        {"hidden_sizes": (20,), "normalize": (1e-05, 0.3), "mixed_precision": "bf16"},
    ],
    ids=["all", "none", "some"],
)
@pytest.mark.parametrize("recipe", ["mnist", "mnist-deformed"])
def test_the_training_command_repeats_a_training(
    recipe: str, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    config = replace(get_recipe(recipe), **changed, data_dir=Path("a b"), log_every=5)
    words = training_command(config, "data_dir")
    assert words[:6] == ["accelerate", "launch", "-m", "mlp_dist.train", "--recipe", recipe]
    _, found, _ = train.configure(words[4:])
    assert replace(found, log_every=5, fallback_dataset=config.fallback_dataset) == config


def test_changes_leave_out_locations_and_unknown_recipes() -> None:
    config = replace(get_recipe("mnist"), data_dir=Path("d"), output_dir=Path("o"), run_name="r", lr=0.3)
    assert changes(replace(config, fallback_dataset=None, log_every=5)) == {"lr": 0.3}
    assert changes(config, "data_dir") == {"lr": 0.3, "data_dir": Path("d")}
    assert changes(replace(config, recipe="my own")) == {}
    everywhere = {name for name, option in OPTIONS.items() if option.changes_training}
    assert everywhere == {*CHANGES, "compile", "recipe"}
