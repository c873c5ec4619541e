"""The rooms of the source import downwards only, and heavy packages are imported late and in few places."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "mlp_dist.core": "",
    "mlp_dist.console": "core",
    "mlp_dist.config": "core console",
    "mlp_dist.data": "core console config",
    "mlp_dist.tracking": "core console config data",
    "mlp_dist.training": "core console config data tracking",
    "mlp_dist.sweep": "core console config data tracking training",
    "mlp_dist.cli": "core console config data tracking training sweep",
    "serve": "core console config data tracking",
}
"""Each room, and the rooms of mlp_dist that it imports; `launch` and `benchmarks` import anything."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for package in ("mlp_dist", "serve", "launch", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(node: ast.AST) -> Iterator[str]:
    """The modules imported anywhere in `node`, for type checkers too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"a relative import: {ast.unparse(node)}"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in MODULES else str(node.module)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
IMPORTS = {name: set(imported(tree)) for name, tree in TREES.items()}


def top(name: str) -> str:
    return name.split(".")[0]


def room(name: str) -> str:
    found = ".".join(name.split(".")[:2]) if name.startswith("mlp_dist.") else top(name)
    return "mlp_dist.config" if found == "mlp_dist.recipes" else found


def test_rooms_import_downwards_only() -> None:
    wrong = []
    for name, targets in IMPORTS.items():
        if room(name) not in MAY_IMPORT:
            continue
        allowed = {room(name), "mlp_dist", *(f"mlp_dist.{each}" for each in MAY_IMPORT[room(name)].split())}
        inside = {each for each in targets if top(each) in ("mlp_dist", "serve", "launch", "benchmarks")}
        wrong += [f"{name} imports {each}" for each in inside if room(each) not in allowed]
    assert wrong == []
    assert {room(name) for name in MODULES} == {*MAY_IMPORT, "mlp_dist", "launch", "benchmarks"}


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: {each for each in found if each in MODULES and each != "mlp_dist"}
        for name, found in IMPORTS.items()
    }
    # A package's __init__ gathers what its modules define, and its modules import each other past it.
    TopologicalSorter(graph).prepare()


def foreign(name: str) -> set[str]:
    """The packages that a module imports from outside the project and the standard library."""
    ours = ("mlp_dist", "serve", "launch", "benchmarks")
    return set(map(top, IMPORTS[name])) - sys.stdlib_module_names - set(ours)


ARCHIVED = ("mlp_dist.core", "serve.inference", "serve.handler")
IN_ARCHIVE = [name for name in MODULES if name.startswith(ARCHIVED)]


@pytest.mark.parametrize("name", IN_ARCHIVE)
def test_the_archive_holds_all_that_it_imports(name: str) -> None:
    # Serving takes no locks, so only a function of io imports filelock. MLflow alone imports pyfunc.
    late = {"mlp_dist.core.io": {"filelock"}, "mlp_dist.core.pyfunc": {"mlflow", "pandas"}}
    assert foreign(name) <= {"torch", "numpy", "PIL", "cv2", "ts"} | late.get(name, set())
    inside = {each for each in IMPORTS[name] if top(each) in ("mlp_dist", "serve")}
    assert inside <= {*IN_ARCHIVE, "mlp_dist"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(map(top, json.loads(done.stdout)))


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import mlp_dist", {"torch", "numpy"}),
        ("import mlp_dist.cli.train", {"accelerate", "mlflow", "matplotlib", "sklearn", "torchvision"}),
        (
            "import mlp_dist.core.bundle, mlp_dist.core.inputs",
            {"mlflow", "accelerate", "filelock", "matplotlib", "sklearn", "torchvision", "sympy"},
        ),
    ],
)
@pytest.mark.slow
def test_heavy_packages_are_imported_late(statement: str, heavy: set[str]) -> None:
    assert loaded_by(statement) & heavy == set()


def test_commands_are_found_as_modules_of_the_package() -> None:
    code = "import importlib.util as u; print(u.find_spec('mlp_dist.train').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("mlp_dist/cli/train.py")
