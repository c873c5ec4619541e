"""Comparing runs on MLflow's pages, in a real browser."""

from pathlib import Path

import pytest

from tests.helpers.launching import DATASET, result, train
from tests.helpers.mlflow_pages import CHROMIUM, opened
from tests.helpers.mlflow_servers import running_ui

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package `chromium`"),
]

FLAGS = {
    "mnist dataset=digits seed=0": (),
    "mnist dataset=digits lr=0.05 seed=1": ("--lr", "0.05", "--seed", "1"),
    "mnist dataset=digits hidden_sizes=256-64 seed=0": ("--hidden-sizes", "256,64"),
}


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The directory of three trainings, and their best validation accuracies by name."""
    directory = tmp_path_factory.mktemp("seen")
    return directory, {
        name: result(train(*DATASET, "--epochs", "5", *flags, cwd=directory))["val_accuracy"]
        for name, flags in FLAGS.items()
    }


def test_runs_are_sorted_selected_and_compared(trained_here: tuple[Path, dict[str, float]]) -> None:
    directory, accuracies = trained_here
    with running_ui(directory) as ui, opened(ui.uri) as pages:
        pages.open_experiment("mlp_dist")
        pages.sort_by("best_val_accuracy")
        listed = pages.runs()
        assert sorted(listed) == sorted(FLAGS)
        found = [accuracies[name] for name in listed]
        assert found == sorted(found, reverse=True)
        # Unsorted, the latest run comes first.
        assert found[0] > accuracies[list(FLAGS)[-1]]
        pages.select(listed)
        pages.compare()
        assert pages.differences() == {
            "hidden_sizes": ["256,64" if "hidden_sizes" in name else "500" for name in listed],
            "layer_sizes": ["784-256-64-10" if "hidden_sizes" in name else "784-500-10" for name in listed],
            "lr": ["0.05" if "lr" in name else "0.1" for name in listed],
            "num_parameters": ["218058" if "hidden_sizes" in name else "397510" for name in listed],
            "seed": [name[-1] for name in listed],
        }
