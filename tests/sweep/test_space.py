from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mlp_dist.core.errors import UsageError
from mlp_dist.recipes import changes, get_recipe
from mlp_dist.sweep.space import Space, in_words, read_space
from tests.helpers.launching import ROOT

LR = "lr = { low = 0.01, high = 1.0, log = true }"


def read(text: str, tmp_path: Path) -> Space:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path)


def test_space_has_fixed_fields_and_parameters(tmp_path: Path) -> None:
    space = read(
        f"""
        [fixed]
        recipe = "mnist-100-adam"
        dataset = "digits"
        normalize = "none"
        val_size = 100

        [space]
        {LR}
        hidden_sizes = [[256], [], [256, 64]]
        batch_size = {{ low = 50, high = 200, step = 50 }}
        dropout = {{ low = 0.0, high = 0.4, step = 0.1 }}
        optimizer = ["sgd", "adam"]
        """,
        tmp_path,
    )
    assert changes(space.base) == {"dataset": "digits", "normalize": (0.0, 1.0), "val_size": 100}
    assert space.base.fallback_dataset is None
    assert space.distributions == {
        "lr": FloatDistribution(0.01, 1.0, log=True),
        "hidden_sizes": CategoricalDistribution(["256", "none", "256,64"]),
        "batch_size": IntDistribution(50, 200, step=50),
        "dropout": FloatDistribution(0.0, 0.4, step=0.1),
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
    }
    texts = [in_words(each) for each in space.distributions.values()]
    assert texts[:2] == ["0.01 to 1, log", "256 or none or 256,64"]
    assert texts[2:] == ["50 to 200 by 50", "0 to 0.4 by 0.1", "sgd or adam"]
    suggested = {"lr": 0.23456789, "hidden_sizes": "none", "batch_size": 150, "dropout": 0.30000000000000004}
    values = {"lr": 0.235, "hidden_sizes": (), "batch_size": 150, "dropout": 0.3, "optimizer": "sgd"}
    assert space.values({**suggested, "optimizer": "sgd"}) == values
    assert space.values({"lr": 0.5}) == {"lr": 0.5}


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_example_spaces_are_valid(name: str) -> None:
    path = ROOT / f"launch/sweeps/{name}.toml"
    assert len(read_space(path).distributions) >= 3
    assert f"python launch/sweep.py launch/sweeps/{name}.toml " in path.read_text()


def test_documented_space_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/training.md").read_text().partition("```toml\n")[2].partition("```")[0]
    assert list(read(text, tmp_path).distributions) == ["lr", "batch_size", "hidden_sizes"]


def test_default_recipe_and_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(f'[fixed]\ndataset = "auto"\n[space]\n{LR}', tmp_path).base == get_recipe("mnist")
    monkeypatch.chdir(tmp_path)
    space = read(f'[fixed]\ndataset = "folder:images"\n[space]\n{LR}', tmp_path)
    assert space.base.dataset == f"folder:{tmp_path}/images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[space", "cannot read the search space"),
        ("", "[space] is missing; add it with, for example, lr = {"),
        (f"[spce]\n{LR}", "unknown table 'spce'; did you mean space? (there are: fixed, space)"),
        (f"[fixed]\nepoch = 5\n[space]\n{LR}", "unknown field 'epoch'; did you mean epochs?"),
        (f"[fixed]\nepochs = 0\n[space]\n{LR}", "epochs is 0; it must be a whole number, at least 1"),
        (f"[fixed]\nval_size = 0\n[space]\n{LR}", "val_size is 0; it must be above 0: trials are ranked"),
        (f"[fixed]\nlr = 0.1\n[space]\n{LR}", "lr is in [fixed] and in [space]: remove one"),
        ('[space]\ndataset = ["mnist", "digits"]', "dataset cannot differ between trials: put it in [fixed]"),
        ("[space]\nlr = 0.1", "lr is 0.1; it must list the values to try: [..., ...], or { low = ..., hi"),
        ("[space]\nhidden_sizes = [[5], [5]]", "hidden_sizes lists 5 twice: remove one"),
        ('[space]\nlr = [0.1, "high"]', "lr is 'high'; it must be a number, above 0"),
        ("[space]\nlr = { low = 0, high = 1, log = true }", "low is 0; it must be above 0 if log is true"),
        ("[space]\ndropout = { low = 0, high = 0.5, step = 0.2 }", "high is 0.5; it must be low plus a"),
        ('[space]\nlr = { low = "a", high = 1 }', "lr: low is 'a'; it must be a number, above 0"),
        ("[space]\nlr = { low = 0.1, high = 1, log = 1 }", "lr: log is 1; it must be true or false"),
        ("[space]\noptimizer = { low = 1, high = 2 }", "optimizer is not a number and has no range"),
        ('[space]\noptimizer = ["sgd", "sdg"]', "optimizer is 'sdg'; it must be one of sgd, adam"),
        (
            "[space]\nwarmup_epochs = [0, 3]\nlr = [0.1, 0.2]\nepochs = { low = 2, high = 5 }",
            "warmup-epochs is 3.0; it must be at most the 2 epochs in all",
        ),
    ],
)
def test_rejects_invalid_space(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read(text, tmp_path)
    assert message in str(raised.value)
    assert str(tmp_path / "space.toml") in str(raised.value)


def test_parameters_are_checked_against_each_other_and_not_the_recipe(tmp_path: Path) -> None:
    space = read("[space]\nwarmup_epochs = [6, 7]\nepochs = [8, 9]", tmp_path)
    assert list(space.distributions) == ["warmup_epochs", "epochs"]
