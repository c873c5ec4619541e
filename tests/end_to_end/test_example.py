"""The notebook, executed from top to bottom, does what it says; what is committed with it is of its cells."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from mlp_dist.core.golden import PROBABILITY_TOLERANCE
from tests.helpers.execute_notebook import DIGEST, NOTEBOOK, execute, read, sources_sha256
from tests.helpers.launching import ROOT

ROUNDING = 1e-3
"""What sums in another order come to over 600 steps, in losses and weights of about 1."""

RESULTS = ("tensor_run", "default_run", "faster_run")
DIFFERENCES = ("of_losses", "of_weights", "from_recipe", "from_server")
STATED = ("tensor_accuracy", "module_accuracy", *RESULTS, *DIFFERENCES)
STATE = f"print(json.dumps({{name: globals()[name] for name in {STATED}}}))"

BROKEN = "Client.predict = lambda *_: 1 / 0"
"""A question that fails, while the server runs."""

NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


def shown_text(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def kinds(notebook: NotebookNode) -> dict[str, set[str]]:
    """What each cell shows: text, tables, pictures."""
    return {
        cell.id: {kind for output in cell.outputs for kind in output.get("data", [output.get("name")])}
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def running_in(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(directory):
                yield process


@pytest.fixture(scope="module")
def executed(
    tmp_path_factory: pytest.TempPathFactory, shared_ports: None
) -> Iterator[tuple[NotebookNode, list[psutil.Process]]]:
    """With what it states and a failing question at its end, and the processes that it left behind."""
    directory = tmp_path_factory.mktemp("notebook")
    notebook = read()
    [ask] = [cell.source for cell in notebook.cells if cell.id == "ask"]
    failing = new_code_cell(f"{BROKEN}\n{ask}", metadata={"tags": ["raises-exception"]})
    notebook.cells += [new_code_cell(STATE), failing]
    data = Path(os.environ.get("MLP_DIST_DATA") or ROOT / "data").resolve()
    try:
        execute(notebook, directory, MLP_DIST_DATA=str(data), **NO_NETWORK)
        yield notebook, list(running_in(directory))
    finally:
        for process in running_in(directory):
            process.kill()


@pytest.mark.slow
def test_it_does_what_it_says(executed: tuple[NotebookNode, list[psutil.Process]]) -> None:
    notebook, left = executed
    *cells, stated, failed = notebook.cells
    found = json.loads(shown_text(stated))
    tensor, default, faster = (found[name] for name in RESULTS)
    by_hand = found["tensor_accuracy"]
    assert by_hand == pytest.approx(found["module_accuracy"], abs=2e-3)
    assert by_hand == pytest.approx(tensor["test_accuracy"], abs=2e-3)
    assert by_hand > 0.9
    on_mnist = tensor["dataset"] == "mnist"
    assert min(default["test_accuracy"], faster["test_accuracy"]) > (0.97 if on_mnist else 0.93)
    assert found["from_server"] <= PROBABILITY_TOLERANCE
    assert max(found["of_losses"], found["of_weights"], found["from_recipe"]) < ROUNDING
    assert failed.outputs[-1].ename == "ZeroDivisionError"
    assert "has ended" in shown_text(failed)
    assert left == []
    if on_mnist:
        notebook.cells = cells
        assert kinds(notebook) == kinds(read())


def test_the_committed_outputs_are_of_the_committed_cells() -> None:
    notebook = read()
    again = "run: python tests/helpers/execute_notebook.py"
    assert notebook.metadata.get(DIGEST) == sources_sha256(notebook), again
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), again
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    shown = kinds(notebook).values()
    assert not any("stderr" in each for each in shown)
    assert sum("image/png" in each for each in shown) >= 4


def test_it_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 400_000
    without_pictures = re.sub(r'"image/png": ".*"', "", text)
    assert re.findall(r"(?<![\w.:/<])/\w[\w.-]*/.*", without_pictures) == []
