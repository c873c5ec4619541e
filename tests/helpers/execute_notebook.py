"""Execute the notebook and store its outputs: `python tests/helpers/execute_notebook.py`."""

import hashlib
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from tests.helpers.launching import ROOT, environment

NOTEBOOK = ROOT / "examples/mnist_mlp.ipynb"

DIGEST = "executed_sources_sha256"
"""Key in the notebook's metadata: the hash of the sources that produced the outputs."""


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def sources_sha256(notebook: NotebookNode) -> str:
    sources = "\0".join(f"{cell.cell_type} {cell.source}" for cell in notebook.cells)
    return hashlib.sha256(sources.encode()).hexdigest()


def execute(notebook: NotebookNode, directory: Path, **changes: str) -> None:
    """Run all cells from top to bottom, as in a new clone at `directory`. Raises CellExecutionError."""
    (directory / "launch").symlink_to(ROOT / "launch")
    examples = directory / "examples"
    examples.mkdir()
    client = NotebookClient(
        notebook,
        config=Config({"KernelManager": {"transport_encryption": "required"}}),
        resources={"metadata": {"path": str(examples)}},
        timeout=400,
        record_timing=False,
    )
    client.execute(env=environment(**changes))


def main() -> None:
    notebook = read()
    with tempfile.TemporaryDirectory(prefix="mlp-notebook-") as directory:
        execute(notebook, Path(directory))
    notebook.metadata[DIGEST] = sources_sha256(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
