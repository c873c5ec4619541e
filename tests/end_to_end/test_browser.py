"""What MLflow's pages show of runs, in a real browser."""

import re
from pathlib import Path

import pytest

from tests.helpers.launching import QUICK, result, train
from tests.helpers.mlflow_pages import CHROMIUM, opened
from tests.helpers.mlflow_servers import running_ui

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package `chromium`"),
]

FLAGS = {
    "seed=0 · mnist-quick on digits": (),
    "lr=0.05 seed=1 · mnist-quick on digits": ("--lr", "0.05", "--seed", "1"),
    "hidden_sizes=256,64 seed=0 · mnist-quick on digits": ("--hidden-sizes", "256,64"),
}


def test_the_printed_address_lists_runs_which_are_compared(tmp_path: Path) -> None:
    accuracies, address = {}, ""
    for name, flags in FLAGS.items():
        done = train(*QUICK, "--epochs", "5", *flags, cwd=tmp_path)
        accuracies[name] = result(done)["val_accuracy"]
        [address] = re.findall(r"see: +mlflow ui, then (\S+)", done.stdout)
    with running_ui(tmp_path) as ui, opened(ui.uri) as pages:
        pages.open_runs(address)
        listed = pages.runs()
        assert sorted(listed) == sorted(FLAGS)
        found = [accuracies[name] for name in listed]
        assert found == sorted(found, reverse=True)
        # Unsorted, the latest run comes first.
        assert found[0] > accuracies[list(FLAGS)[-1]]
        assert pages.compare(listed) == {
            "hidden_sizes": ["256,64" if "hidden_sizes" in name else "500" for name in listed],
            "lr": ["0.05" if "lr" in name else "0.1" for name in listed],
            "num_parameters": ["218058" if "hidden_sizes" in name else "397510" for name in listed],
            "seed": ["1" if "seed=1" in name else "0" for name in listed],
        }
        pages.open_runs(address, "&compareRunsMode=CHART")
        assert pages.chart_sections() == ["train", "val", "Model metrics", "System metrics"]
