import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.recipes import get_recipe
from mlp_dist.training.identity import git_state, run_name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "seed=0 · mnist-quick"),
        ({"lr": 0.3, "seed": 1, "dropout": 0.2}, "lr=0.3 dropout=0.2 seed=1 · mnist-quick"),
        ({"hidden_sizes": (), "normalize": None}, "hidden_sizes=none seed=0 · mnist-quick"),
        ({"val_size": 50}, "val_size=50 seed=0 · mnist-quick"),
        ({"dataset": "folder:/data/pets"}, "seed=0 · mnist-quick on folder:pets"),
        ({"output_dir": Path("/there"), "experiment": "x", "log_every": 5}, "seed=0 · mnist-quick"),
    ],
)
def test_run_names(changes: dict[str, Any], name: str) -> None:
    assert run_name(replace(get_recipe("mnist-quick"), **{"val_size": 100, **changes}), 1200) == name


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) == ("", False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    file = tmp_path / "file"
    file.write_text("one")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "one"]):
        subprocess.run([*git, *words], check=True)
    commit, dirty = git_state(tmp_path)
    assert (len(commit), dirty) == (40, False)
    (tmp_path / "untracked").touch()
    assert git_state(tmp_path) == (commit, False)
    file.write_text("two")
    assert git_state(tmp_path) == (commit, True)
