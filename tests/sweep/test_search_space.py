from pathlib import Path
from typing import Any

import pytest

from mlp_dist.core.errors import UsageError
from mlp_dist.recipes import get_recipe, overrides
from mlp_dist.sweep.space import Choices, Range, Space, read_space
from tests.helpers.launching import ROOT

LR = "lr = { low = 0.01, high = 1.0, log = true }"


def read(text: str, tmp_path: Path) -> Space:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path)


def test_a_space_is_a_training_and_what_trials_differ_in(tmp_path: Path) -> None:
    space = read(
        f"""
        [fixed]
        recipe = "mnist-100-adam"
        dataset = "digits"
        normalize = "none"
        val_size = 100
        warmup_epochs = 1

        [space]
        {LR}
        hidden_sizes = [[256], [], [256, 64]]
        batch_size = {{ low = 50, high = 200, step = 50 }}
        dropout = {{ low = 0.0, high = 0.4, step = 0.1 }}
        optimizer = ["sgd", "adam"]
        """,
        tmp_path,
    )
    assert overrides(space.base) == {
        "dataset": "digits",
        "normalize": (0.0, 1.0),
        "warmup_epochs": 1,
        "val_size": 100,
    }
    assert space.base.fallback_dataset is None
    assert space.parameters == (
        Range("lr", 0.01, 1.0, log=True),
        Choices("hidden_sizes", ((256,), (), (256, 64))),
        Range("batch_size", 50, 200, step=50),
        Range("dropout", 0.0, 0.4, step=0.1),
        Choices("optimizer", ("sgd", "adam")),
    )
    assert [str(each) for each in space.parameters] == [
        "0.01 to 1, log",
        "256 or none or 256,64",
        "50 to 200 by 50",
        "0 to 0.4 by 0.1",
        "sgd or adam",
    ]
    drawn = {"lr": 0.23456789, "hidden_sizes": "none", "batch_size": 150, "dropout": 0.30000000000000004}
    values = {"lr": 0.235, "hidden_sizes": (), "batch_size": 150, "dropout": 0.3, "optimizer": "sgd"}
    assert space.values({**drawn, "optimizer": "sgd"}) == values
    assert space.values({"lr": 0.5}) == {"lr": 0.5}


def test_rounded_numbers_stay_in_their_range() -> None:
    narrow = Range("lr", 0.12345, 0.12349)
    assert [narrow.value(value) for value in (0.12345, 0.12349)] == [0.12345, 0.12345]
    assert Range("lr", 1, 2).value(1.0004) == 1.0


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_the_spaces_that_come_along(name: str) -> None:
    path = ROOT / f"launch/sweeps/{name}.toml"
    assert len(read_space(path).parameters) >= 3
    assert f"python launch/sweep.py launch/sweeps/{name}.toml " in path.read_text()


def test_the_space_in_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs/training.md").read_text().partition("```toml\n")[2].partition("```")[0]
    assert [each.name for each in read(text, tmp_path).parameters] == ["lr", "batch_size", "hidden_sizes"]


def test_a_space_without_a_recipe_is_of_the_default_one(tmp_path: Path) -> None:
    assert read(f'[fixed]\ndataset = "auto"\n[space]\n{LR}', tmp_path).base == get_recipe("mnist")


def test_a_folder_is_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = read(f'[fixed]\ndataset = "folder:images"\n[space]\n{LR}', tmp_path)
    assert space.base.dataset == f"folder:{tmp_path}/images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[space", "cannot be read: Expected ']'"),
        ("", "there is no [space] in it, as lr = {"),
        ("space = 5", "space is 5; it must be a table: [space]"),
        (f"[spce]\n{LR}", "unknown table 'spce'; did you mean space? (there are: fixed, space)"),
        ("[fixed]\nepoch = 5", "[fixed] unknown field 'epoch'; did you mean epochs?"),
        ('[fixed]\nrecipe = "mnst"', "[fixed] unknown recipe 'mnst'; did you mean mnist?"),
        ('[fixed]\noutput_dir = "x"', "[fixed] unknown field 'output_dir'"),
        ("[fixed]\nepochs = 1.5", "[fixed] epochs is 1.5; it must be a whole number"),
        ("[fixed]\nepochs = true", "[fixed] epochs is True; it must be a whole number"),
        ('[fixed]\ndropout = "0.1"', "[fixed] dropout is '0.1'; it must be a number"),
        ("[fixed]\ncompile = 1", "[fixed] compile is 1; it must be true or false"),
        ("[fixed]\nmodel = 1", "[fixed] model is 1; it must be text in quotes"),
        ("[fixed]\nnormalize = [1]", "[fixed] normalize is (1,); it must be a mean and a std as [0.5, 0.5]"),
        ("[fixed]\nhidden_sizes = [0.5]", "hidden_sizes is (0.5,); it must be a list of whole numbers"),
        ("[fixed]\nepochs = 0", "[fixed] epochs is 0; it must be 1 or more"),
        ('[fixed]\nrecipe = "mnist-best"', "[fixed] val_size is 0; it must be above 0, as 5000: trials are"),
        ("[fixed]\nlr = 0.1", "lr stands in [fixed] and in [space]: leave one out"),
    ],
)
def test_what_is_no_space(text: str, message: str, tmp_path: Path) -> None:
    whole = f"{text}\n[space]\n{LR}\n" if text.startswith("[fixed]") else text
    with pytest.raises(UsageError) as raised:
        read(whole, tmp_path)
    assert message in str(raised.value)
    assert str(tmp_path / "space.toml") in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lrr = [1, 2]", "[space] unknown field 'lrr'; did you mean lr?"),
        ('dataset = ["mnist", "digits"]', "[space] dataset cannot differ between trials: put it in [fixed]"),
        ("lr = 0.1", "[space] lr is 0.1; it must be the values to try, as [..., ...], or { low = ..., hi"),
        ("lr = [0.1]", "[space] lr: a choice is of two values or more; a single one stands in [fixed]"),
        ("hidden_sizes = [[5], [5]]", "[space] hidden_sizes: 5 stands there twice"),
        ('lr = [0.1, "high"]', "[space] lr is 'high'; it must be a number"),
        ("lr = { low = 0.1 }", "[space] lr: high is missing"),
        ("lr = { low = 1, high = 0.1 }", "[space] lr: low is 1; it must be below high, which is 0.1"),
        ("lr = { low = 0, high = 1, log = true }", "low is 0; it must be above 0 where log is true"),
        ("lr = { low = 0.1, high = 1, lg = true }", "[space] lr: unknown key 'lg'; did you mean log?"),
        ("lr = { low = 0.1, high = 1, log = 1 }", "[space] lr: log is 1; it must be true or false"),
        ("lr = { low = 1, high = 2, log = true, step = 1 }", "step is 1; it must be left out where log is"),
        ("dropout = { low = 0, high = 0.5, step = 0 }", "[space] dropout: step is 0; it must be above 0"),
        (
            "dropout = { low = 0, high = 0.5, step = 0.2 }",
            "high is 0.5; it must be low and a whole number of",
        ),
        (
            "batch_size = { low = 50, high = 60.5 }",
            "[space] batch_size is 60.5; it must be a whole number",
        ),
        (
            "optimizer = { low = 1, high = 2 }",
            "[space] optimizer has no range, as only numbers have",
        ),
        ('optimizer = ["sgd", "sdg"]', "[space] optimizer is sdg; it must be one of sgd, adam, scratch-sgd"),
        ("lr = { low = -1, high = 1 }", "[space] lr is -1; it must be a number above 0"),
        (
            "warmup_epochs = [0, 3]\nlr = [0.1, 0.2]\nepochs = { low = 2, high = 5 }",
            "[space] warmup-epochs is 3; it must be from 0 to the 2 epochs of the training",
        ),
    ],
)
def test_what_cannot_be_tried(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read(f"[space]\n{line}\n", tmp_path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "space.toml"))


def test_limits_that_fit_each_other_though_not_the_recipe(tmp_path: Path) -> None:
    """Each is tried with the others' values, not with the recipe's."""
    lines: dict[str, Any] = {"warmup_epochs": "[6, 7]", "epochs": "[8, 9]"}
    text = "\n".join(f"{name} = {values}" for name, values in lines.items())
    assert [each.name for each in read(f"[space]\n{text}", tmp_path).parameters] == list(lines)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.toml cannot be read: .*No such file"):
        read_space(tmp_path / "none.toml")
