"""Named functions, each returning one complete TrainConfig. A variant is a `replace` of another."""

from collections.abc import Callable

from mlp_dist.config import TrainConfig, unknown
from mlp_dist.core.errors import UsageError
from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.catalog import CATALOG


def mnist() -> TrainConfig:
    """784-500-10 with ReLU on MNIST, plain SGD: five epochs to about 97.8%."""
    return TrainConfig(
        recipe="mnist",
        dataset="mnist",
        fallback_dataset="digits",
        hidden_sizes=(500,),
        optimizer="sgd",
        lr=0.1,
        batch_size=100,
        epochs=5,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {recipe.__name__: recipe for recipe in (mnist,)}


def get_recipe(name: str) -> TrainConfig:
    """Raises UsageError, naming the known ones, for any other name."""
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES))
    return RECIPES[name]()


def recipe_table() -> str:
    """One line a recipe: what it builds, on which data, how it trains."""
    rows = [("recipe", "model", "parameters", "data set", "training")]
    for name in RECIPES:
        config = get_recipe(name)
        dataset = CATALOG[config.dataset]
        features, classes = dataset.image.num_features, len(dataset.classes)
        model = ModelSpec((features, *config.hidden_sizes, classes))
        training = (
            f"{config.optimizer} {config.lr:g}, batch {config.batch_size}, {config.epochs} epochs, "
            f"mean {dataset.image.mean[0]:g}, std {dataset.image.std[0]:g}"
        )
        rows.append((name, str(model), f"{model.num_parameters:,}", config.dataset, training))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
