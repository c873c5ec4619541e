import pytest

from mlp_dist import recipes
from mlp_dist.config import TrainConfig
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import UsageError
from mlp_dist.core.spec import ModelSpec
from mlp_dist.recipes import PUBLISHED, RECIPES, get_recipe, recipe_table

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
"""Hidden sizes, kind, initialization, normalization, optimizer, lr, batch, epochs, parameters, published."""


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_are_built_and_trained_as_their_authors_did(name: str) -> None:
    config = get_recipe(name)
    model = ModelSpec((784, *config.hidden_sizes, 10), config.model)
    assert (
        *(config.hidden_sizes, config.model, config.initialization, config.normalize, config.optimizer),
        *(config.lr, config.batch_size, config.epochs, model.num_parameters, PUBLISHED.get(name)),
    ) == TUTORIALS[name]
    assert (config.dataset, config.val_size, config.image_size, config.seed) == ("mnist", 0, 28, 0)


def test_there_is_nothing_else() -> None:
    best = {"mnist-best", "mnist-deformed", "mnist-deformed-full", "fashion-best"}
    assert set(RECIPES) == {"mnist", *TUTORIALS, *best}
    assert (set(recipes.TUTORIALS), set(recipes.BEST)) == (set(TUTORIALS), best)
    assert set(PUBLISHED) <= set(TUTORIALS)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_complete_configuration_of_its_name(name: str) -> None:
    config = get_recipe(name)
    assert isinstance(config, TrainConfig)
    assert config.recipe == name
    assert get_recipe(name) == config
    assert config.dataset in CATALOG
    assert RECIPES[name].__doc__


def test_mnist_is_the_default_s_784_500_10() -> None:
    config = get_recipe("mnist")
    assert (config.dataset, config.fallback_dataset, config.hidden_sizes) == ("mnist", "digits", (500,))
    assert (config.optimizer, config.lr, config.batch_size, config.epochs) == ("sgd", 0.1, 100, 5)


@pytest.mark.parametrize(
    ("name", "hint"), [("mnits", "; did you mean mnist"), ("MNIST", ""), ("", ""), ("resnet", "")]
)
def test_unknown_recipe_lists_all(name: str, hint: str) -> None:
    with pytest.raises(
        UsageError, match=rf"unknown recipe '{name}'{hint}.* \(there are: {', '.join(RECIPES)}\)"
    ):
        get_recipe(name)


def test_table_has_a_line_a_recipe() -> None:
    head, *lines = recipe_table().splitlines()
    assert head.split("  ")[0].strip() == "recipe"
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert len({line.index(line.split()[1]) for line in lines}) == 1
    mnist = lines[list(RECIPES).index("mnist")]
    for part in ("784-500-10", "397,510", "sgd 0.1", "batch 100", "5 epochs", "0.1307", "0.3081"):
        assert part in mnist
    scratch = lines[list(RECIPES).index("mnist-scratch-256-64")]
    built = ("784-256-64-10", "core/layers.py, normal_0.1", "218,058")
    for part in (*built, "scratch-sgd 0.01", "15 epochs", "0.9562"):
        assert part in scratch
    assert lines[list(RECIPES).index("mnist-logistic")].split()[-1] == "-"
