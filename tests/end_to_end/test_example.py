"""The notebook runs from top to bottom, and its committed outputs belong to its cells."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from mlp_dist.core.spec import PROBABILITY_TOLERANCE
from tests.helpers.execute_notebook import DIGEST, execute, read, sources_sha256
from tests.helpers.launching import ROOT

ROUNDING = 1e-3
"""Tolerance for losses and weights of about 1 after 600 steps with sums in another order."""

RESULTS = ("tensor_run", "default_run", "faster_run")
DIFFERENCES = ("of_losses", "of_weights", "from_recipe", "from_server")
NAMES = ("tensor_accuracy", "module_accuracy", *RESULTS, *DIFFERENCES)
PRINT_NAMES = f"print(json.dumps({{name: globals()[name] for name in {NAMES}}}))"

BREAK_CLIENT = "Client.predict = lambda *_: 1 / 0"
"""Makes a request fail while the server runs."""

NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


def text_output(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def output_kinds(notebook: NotebookNode) -> dict[str, set[str]]:
    """The stream names and MIME types of each code cell's outputs."""
    return {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", [output.get("name")])}
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def processes_in(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(directory):
                yield process


@pytest.mark.nightly
def test_notebook_runs(tmp_path: Path, shared_ports: None) -> None:
    notebook = read()
    cells = list(notebook.cells)
    [ask] = [cell.source for cell in cells if cell.id == "ask"]
    failing = new_code_cell(f"{BREAK_CLIENT}\n{ask}", metadata={"tags": ["raises-exception"]})
    values = new_code_cell(PRINT_NAMES)
    notebook.cells = [*cells, values, failing]
    data = Path(os.environ.get("MLP_DIST_DATA") or ROOT / "data").resolve()
    try:
        execute(notebook, tmp_path, MLP_DIST_DATA=str(data), **NO_NETWORK)
        assert list(processes_in(tmp_path)) == []
    finally:
        for process in processes_in(tmp_path):
            process.kill()

    found = json.loads(text_output(values))
    tensor, default, faster = (found[name] for name in RESULTS)
    by_hand = found["tensor_accuracy"]
    assert by_hand == pytest.approx(found["module_accuracy"], abs=2e-3)
    assert by_hand == pytest.approx(tensor["test_accuracy"], abs=2e-3)
    assert by_hand > 0.9
    on_mnist = tensor["dataset"] == "mnist"
    assert min(default["test_accuracy"], faster["test_accuracy"]) > (0.97 if on_mnist else 0.93)
    assert found["from_server"] <= PROBABILITY_TOLERANCE
    assert max(found["of_losses"], found["of_weights"], found["from_recipe"]) < ROUNDING
    assert failing.outputs[-1].ename == "ZeroDivisionError"
    if on_mnist:
        notebook.cells = cells
        assert output_kinds(notebook) == output_kinds(read())


def test_committed_outputs_belong_to_the_cells() -> None:
    notebook = read()
    fix = "run: python tests/helpers/execute_notebook.py"
    assert notebook.metadata.get(DIGEST) == sources_sha256(notebook), fix
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), fix
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    kinds = output_kinds(notebook).values()
    assert not any("stderr" in each for each in kinds)
    assert sum("image/png" in each for each in kinds) >= 4
