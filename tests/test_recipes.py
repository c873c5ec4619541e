import pytest

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import UsageError
from mlp_dist.data.catalog import CATALOG
from mlp_dist.recipes import RECIPES, get_recipe, recipe_table


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
