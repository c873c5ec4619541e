import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from mlp_dist.cli import train
from mlp_dist.config import WHERE, TrainConfig
from mlp_dist.recipes import RECIPES, flags, get_recipe, overrides, training_command

CHANGES = {
    "dataset": ["digits", "mnist", "folder:/images of mine"],
    "hidden_sizes": [(20, 10), (20,), ()],
    "model": ["tensor"],
    "initialization": ["normal_0.01"],
    "image_size": [20],
    "normalize": [(0.0, 1.0), (-0.5, 0.25), (1e-05, 0.1 + 0.2), None],
    "optimizer": ["adam"],
    "lr": [0.1 + 0.2, 1e-05],
    "schedule": ["cosine"],
    "warmup_epochs": [0.5],
    "batch_size": [7],
    "accumulation_steps": [2],
    "clip_norm": [1.5],
    "weight_decay": [0.0001],
    "label_smoothing": [0.125],
    "dropout": [0.25],
    "augment_shift": [3],
    "deform": [0.75],
    "adversarial": [0.05],
    "ema_decay": [0.999],
    "epochs": [9],
    "patience": [3],
    "seed": [2**62],
    "val_size": [77, 0],
    "mixed_precision": ["bf16", "no"],
    "gradient_dtype": ["float64"],
    "matmul_precision": ["highest"],
    "compile": [True],
    "skip_bad_images": [True],
}
"""Values of all fields that a flag of launch/train.py gives, but for those of WHERE."""


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """What launch/train.py makes of its command line."""
    monkeypatch.setattr(sys, "argv", ["launch/train.py", *words])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    return train.configure(train.parse())[0]


def same(config: TrainConfig, other: TrainConfig) -> bool:
    """But for where things go."""
    return replace(config, **{name: getattr(other, name) for name in WHERE}) == other


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_overrides_nothing(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_recipe(recipe)
    assert overrides(config) == {}
    words = training_command(config)
    assert words == ["accelerate", "launch", "launch/train.py", "--recipe", recipe]
    assert parsed(words[3:], monkeypatch) == config


@pytest.mark.parametrize("recipe", ["mnist", "mnist-best"])
@pytest.mark.parametrize("name", CHANGES)
def test_each_flag_gives_the_same_training_again(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What some of the values do not go with.
    fitting = {"gradient_dtype": {"mixed_precision": "no"}, "patience": {"val_size": 100}}.get(name, {})
    for value in CHANGES[name]:
        config = replace(get_recipe(recipe), **{**fitting, name: value})
        assert same(parsed(training_command(config)[3:], monkeypatch), config)
        differs = value != getattr(get_recipe(recipe), name)
        assert (overrides(config).get(name, "the same") == value) is differs


def test_all_flags_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {name: values[0] for name, values in CHANGES.items()}
    everything |= {"mixed_precision": "no", "compile": False}
    config = replace(get_recipe("mnist-deformed"), **everything)
    assert same(parsed(training_command(config)[3:], monkeypatch), config)


def test_every_flag_of_the_training_is_tried() -> None:
    known = {*CHANGES, *WHERE, "recipe"}
    assert known == {field.name for field in fields(TrainConfig)}
    added = set(re.findall(r'add_argument\(\s*"--([\w-]+)"', Path(train.__file__).read_text()))
    others = {"list-recipes", "resume", "population", "sweep"}
    assert {flag.replace("-", "_") for flag in added - others} == known - {"fallback_dataset"}


def test_where_things_go_is_no_override() -> None:
    config = replace(
        get_recipe("mnist"), data_dir=Path("d"), output_dir=Path("o"), experiment="e", run_name="r", lr=0.3
    )
    assert overrides(replace(config, fallback_dataset=None, log_every=5)) == {"lr": 0.3}
    assert flags({"data_dir": Path("a b"), "experiment": "e"}) == ["--data-dir", "a b", "--experiment", "e"]


def test_a_training_of_no_known_recipe_overrides_nothing() -> None:
    assert overrides(replace(get_recipe("mnist"), recipe="my own", lr=0.3)) == {}


@pytest.mark.parametrize(("name", "value"), [("val_size", None), ("compile", False)])
def test_a_value_that_no_flag_gives_is_an_error(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"no flag of launch/train.py makes {name} {value}"):
        flags({name: value})
