"""Named training configurations, and the command lines that reproduce one.

A recipe is a function that returns a complete TrainConfig. `mnist`, the default, and `mnist_deformed` read
handwriting from anywhere. The recipes from `mnist_logistic` to `mnist_128_64_adam` reproduce tutorials as
published: trained on all images, without validation, tested after each epoch. The other ones aim at the best
accuracy of a single perceptron on a benchmark.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from mlp_dist.config import OPTIONS, TO_TENSOR, TrainConfig
from mlp_dist.core.catalog import ARRAYS_PREFIX, CATALOG, FOLDER_PREFIX, MEMORY
from mlp_dist.core.errors import UsageError, unknown

RECIPES: dict[str, Callable[[], TrainConfig]] = {}


def _recipe(build: Callable[[], TrainConfig]) -> Callable[[], TrainConfig]:
    """Adds a function to RECIPES, under its name with hyphens, which is the config's `recipe`."""
    name = build.__name__.replace("_", "-")

    @wraps(build)
    def named() -> TrainConfig:
        return replace(build(), recipe=name)

    RECIPES[name] = named
    return named


@_recipe
def mnist() -> TrainConfig:
    """784-800-800-10 on deformed MNIST, Adam: reads handwriting by anyone, after a minute on two cores."""
    return replace(
        mnist_quick(),
        hidden_sizes=(800, 800),
        optimizer="adam",
        lr=0.002,
        schedule="cosine",
        warmup_epochs=1,
        batch_size=256,
        weight_decay=0.01,
        restyle=1.0,
        epochs=16,
        matmul_precision="medium",
    )


@_recipe
def mnist_quick() -> TrainConfig:
    """784-500-10 with ReLU on MNIST, plain SGD: about 97.8 % after five epochs, in two seconds."""
    return TrainConfig(
        recipe="mnist-quick",
        dataset="mnist",
        fallback_dataset="digits",
        hidden_sizes=(500,),
        optimizer="sgd",
        lr=0.1,
        batch_size=100,
        epochs=5,
    )


@_recipe
def mnist_logistic() -> TrainConfig:
    """Logistic regression: one linear layer."""
    return replace(mnist_500(), hidden_sizes=(), epochs=4)


@_recipe
def mnist_tensor() -> TrainConfig:
    """784-500-10 in raw tensor operations; weights normal / sqrt(fan in), biases zero."""
    return replace(mnist_500(), model="tensor", initialization="normal_fan_in")


@_recipe
def mnist_500() -> TrainConfig:
    """784-500-10 of nn.Linear on ToTensor's output, for one epoch."""
    return replace(mnist_quick(), normalize=TO_TENSOR, val_size=0, epochs=1)


@_recipe
def mnist_500_4epochs() -> TrainConfig:
    """mnist-500 for four epochs."""
    return replace(mnist_500(), epochs=4)


@_recipe
def mnist_500_slow() -> TrainConfig:
    """mnist-500 for four epochs at a tenth of the learning rate."""
    return replace(mnist_500(), lr=0.01, epochs=4)


@_recipe
def mnist_500_normalized() -> TrainConfig:
    """784-500-10 of nn.Linear on images from -1 to 1, batch 64."""
    return replace(mnist_500(), normalize=(0.5, 0.5), lr=0.01, batch_size=64, epochs=5)


@_recipe
def mnist_tensor_normalized() -> TrainConfig:
    """mnist-500-normalized in raw tensor operations; weights normal * 0.01, biases zero."""
    return replace(mnist_500_normalized(), model="tensor", initialization="normal_0.01")


@_recipe
def mnist_100_adam() -> TrainConfig:
    """784-100-10 on images normalized by MNIST's own mean and std, Adam."""
    return replace(
        mnist_500(), normalize=None, hidden_sizes=(100,), optimizer="adam", lr=0.01, batch_size=64, epochs=5
    )


@_recipe
def mnist_scratch_256_64() -> TrainConfig:
    """784-256-64-10 of core/layers.py, weights normal * 0.1, with the written-out SGD."""
    return replace(
        mnist_500(),
        model="layers",
        initialization="normal_0.1",
        hidden_sizes=(256, 64),
        optimizer="scratch-sgd",
        lr=0.01,
        batch_size=64,
        epochs=15,
    )


@_recipe
def mnist_128_64_adam() -> TrainConfig:
    """784-128-64-10 on images from -1 to 1, Adam, 20 epochs."""
    return replace(
        mnist_500(),
        normalize=(0.5, 0.5),
        hidden_sizes=(128, 64),
        optimizer="adam",
        lr=0.001,
        batch_size=64,
        epochs=20,
    )


TUTORIALS = tuple(RECIPES)[2:]


@_recipe
def mnist_best() -> TrainConfig:
    """784-1024-1024-10 with adversarial training (Goodfellow et al. 2015), without augmentation.

    Dropout, averaged weights, AdamW with a cosine schedule, in bfloat16. Chosen on 5,000 validation images,
    trained on all 60,000; the last epoch is kept.
    """
    return replace(
        mnist_quick(),
        hidden_sizes=(1024, 1024),
        optimizer="adam",
        lr=0.001,
        schedule="cosine",
        warmup_epochs=1,
        batch_size=128,
        weight_decay=0.01,
        dropout=0.3,
        adversarial=0.1,
        ema_decay=0.998,
        epochs=35,
        val_size=0,
        mixed_precision="bf16",
    )


@_recipe
def mnist_deformed() -> TrainConfig:
    """mnist's settings for 784-1536-1536-10 and 100 epochs, on all images: seven minutes on two cores."""
    return replace(
        mnist(), hidden_sizes=(1536, 1536), lr=0.0015, batch_size=512, dropout=0.1, epochs=100, val_size=0
    )


@_recipe
def mnist_deformed_full() -> TrainConfig:
    """Ciresan's 784-2500-2000-1500-1000-500-10, 12 million weights, on deformed images; for a GPU.

    Deformed as by Simard et al. 2003 and Ciresan et al. 2010.
    """
    return replace(
        mnist_best(),
        hidden_sizes=(2500, 2000, 1500, 1000, 500),
        lr=0.0005,
        batch_size=256,
        dropout=0.1,
        adversarial=0.0,
        deform=1.0,
        epochs=300,
    )


@_recipe
def fashion_best() -> TrainConfig:
    """mnist-best's settings on Fashion-MNIST, without further tuning."""
    return replace(mnist_best(), dataset="fashion_mnist")


@_recipe
def folder() -> TrainConfig:
    """One hidden layer for one's own images, gray or color; the default for folders and arrays."""
    return TrainConfig(
        recipe="folder",
        dataset="digits",
        optimizer="adam",
        lr=0.003,
        schedule="one-cycle",
        batch_size=64,
        dropout=0.2,
        augment_shift=2,
        ema_decay=0.995,
        epochs=60,
    )


PUBLISHED = {
    "mnist-tensor": 0.9272,
    "mnist-500": 0.9224,
    "mnist-500-4epochs": 0.9568,
    "mnist-500-slow": 0.9016,
    "mnist-scratch-256-64": 0.9562,
    "mnist-128-64-adam": 0.9733,
}
"""Recipe -> the test accuracy that its author published."""


def get_recipe(name: str) -> TrainConfig:
    """Raises UsageError, with the known names, for an unknown recipe."""
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES))
    return RECIPES[name]()


def default_recipe(dataset: str) -> str:
    """The recipe for a data set, if none is named: `mnist`, or `folder` for the user's own images."""
    is_own = dataset == MEMORY or dataset.startswith((FOLDER_PREFIX, ARRAYS_PREFIX))
    return "folder" if is_own else "mnist"


def recipe_table() -> str:
    """One line per recipe: model, data, training, and the published accuracy."""
    rows = [("recipe", "model", "built of", "data", "training", "published")]
    for name in RECIPES:
        config = get_recipe(name)
        facts = CATALOG[config.dataset]
        assert facts.image is not None, f"the recipe {name} needs a data set with a known format"
        image = facts.image
        sizes = (image.num_features, *config.hidden_sizes, len(facts.classes))
        mean, std = config.normalize or (image.mean[0], image.std[0])
        rows.append(
            (
                name,
                "-".join(map(str, sizes)),
                config.model + (f", {config.initialization}" if config.initialization != "linear" else ""),
                "ToTensor" if config.normalize == TO_TENSOR else f"ToTensor, Normalize({mean:g}, {std:g})",
                f"{config.optimizer} {config.lr:g}, batch {config.batch_size}, epochs {config.epochs}",
                f"{PUBLISHED[name]:.4f}" if name in PUBLISHED else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def changes(config: TrainConfig, *places: str) -> dict[str, Any]:
    """The fields in which `config` differs from its recipe, in TrainConfig's order.

    Of those that do not change what is trained, only `places` are compared. `config` is the requested
    configuration, before start_training sets the data set and val_size. Empty for an unknown recipe.
    """
    if config.recipe not in RECIPES:
        return {}
    recipe = get_recipe(config.recipe)
    compared = [name for name, option in OPTIONS.items() if option.changes_training or name in places]
    return {
        name: getattr(config, name) for name in compared if getattr(config, name) != getattr(recipe, name)
    }


def training_command(config: TrainConfig, *places: str) -> list[str]:
    """The command line that repeats the training, with the changes as `changes` finds them."""
    words = ["accelerate", "launch", "-m", "mlp_dist.train", "--recipe", config.recipe]
    changed = changes(config, *places).items()
    return [*words, *(word for name, value in changed for word in OPTIONS[name].words(value))]
