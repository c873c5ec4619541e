import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mlp_dist", "serve", "launch", "benchmarks")

LAYERS = (
    {"core"},
    {
        *("data", "optim", "config", "recipes", "evaluation", "processes", "checkpoint", "command"),
        *("schedule", "augment", "dropout", "ema", "exact", "steps", "network", "joining"),
        *("peers", "directories", "precision", "deform", "adversarial", "members", "overrides", "tracking"),
        *("mcnemar", "leaderboard", "values", "calibration", "typed", "colours", "progress", "next_steps"),
    },
    {"gradients", "engines"},
    {
        *("trainer", "figures", "export", "start", "report", "finish", "notebook"),
        *("population", "member", "recorder", "recording", "pictured", "tables", "identity", "search"),
        *("promotion", "train", "compare", "promote", "sync", "sweep", "show_data", "templates"),
    },
)
"""The parts of mlp_dist from the lowest up; launch, serve and benchmarks stand above them all."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it but for type checkers."""
    return set(_imported(ast.parse(path.read_text())))


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"a relative import: {ast.unparse(node)}"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in MODULES else str(node.module)
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def top(name: str) -> str:
    return name.split(".")[0]


def users(package: str) -> set[str]:
    """The modules of the project that import `package`."""
    return {name for name, imported in IMPORTS.items() if package in map(top, imported)}


def layer(name: str) -> int:
    if not name.startswith("mlp_dist"):
        return len(LAYERS)
    if name == "mlp_dist":
        return 0
    part = name.split(".")[1]
    (found,) = (number for number, parts in enumerate(LAYERS) if part in parts)
    return found


def foreign(name: str) -> set[str]:
    """The packages that a module imports from outside the project and the standard library."""
    return set(map(top, IMPORTS[name])) - sys.stdlib_module_names - set(PACKAGES)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


SERVED = {"serve.handler", *(name for name in MODULES if name.startswith("serve.answering"))}
CORE = sorted(name for name in MODULES if name.startswith("mlp_dist.core"))


def test_every_part_stands_in_one_layer() -> None:
    parts = {name.split(".")[1] for name in MODULES if name.startswith("mlp_dist.")}
    placed = [part for parts_of_layer in LAYERS for part in parts_of_layer]
    assert parts - set(placed) == set()
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_a_higher_one(name: str) -> None:
    inside = {imported for imported in IMPORTS[name] if top(imported) in PACKAGES}
    assert inside <= set(MODULES)
    assert {imported for imported in inside if layer(imported) > layer(name)} == set()


@pytest.mark.parametrize("name", CORE)
def test_core_imports_itself_torch_numpy_and_pillow(name: str) -> None:
    assert foreign(name) <= {"torch", "numpy", "PIL"}
    assert {imported for imported in IMPORTS[name] if top(imported) in PACKAGES} <= set(CORE)


def test_mlp_dist_imports_nothing_above_it() -> None:
    above = users("serve") | users("launch") | users("benchmarks")
    assert {name for name in above if name.startswith("mlp_dist")} == set()


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("mlflow", {f"mlp_dist.tracking.{name}" for name in ("client", "send", "models", "system")}),
        ("accelerate", {f"mlp_dist.{name}" for name in ("trainer", "gradients", "start", "engines.job")}),
        ("matplotlib", {f"mlp_dist.figures.{name}" for name in ("base", "files")}),
        ("optuna", {"mlp_dist.search.study"}),
        ("sklearn", set()),
        ("tqdm", {"mlp_dist.progress"}),
        ("captum", {"serve.answering.explain"}),
        ("gradio", {"serve.drawing.page"}),
        ("ts", {"serve.answering.metrics", "serve.verify"}),
        ("torchvision", set()),
    ],
)
def test_one_home_for_each_package(package: str, names: set[str]) -> None:
    # Benchmarks measure other packages too.
    assert {name for name in users(package) if top(name) != "benchmarks"} == names


@pytest.mark.parametrize("name", [name for name in MODULES if name in SERVED])
def test_what_travels_in_the_archive_imports_core_and_itself(name: str) -> None:
    assert foreign(name) <= {"torch", "numpy", "PIL", "captum", "ts"}
    inside = {imported for imported in IMPORTS[name] if top(imported) in PACKAGES}
    assert inside <= {*CORE, *SERVED} - {"serve.handler"}


def test_mlp_dist_itself_imports_nothing() -> None:
    assert foreign("mlp_dist") == set()
    assert {name for name in IMPORTS["mlp_dist"] if top(name) in PACKAGES} == set()
    loaded = "before = set(sys.modules); import mlp_dist; print(json.dumps([*set(sys.modules) - before]))"
    names = json.loads(python(f"import json, sys; {loaded}"))
    assert {name for name in names if top(name) not in sys.stdlib_module_names} == {"mlp_dist"}


@pytest.mark.slow
def test_core_needs_nothing_that_training_needs() -> None:
    blocked = ("mlflow", "accelerate", "matplotlib", "sklearn", "torchvision", "tqdm")
    code = f"""
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
for name in {blocked!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(name + " could be imported")
for name in {CORE!r}:
    importlib.import_module(name)
print(sorted(name for name in sys.modules if name.startswith("mlp_dist")))
"""
    assert ast.literal_eval(python(code)) == sorted({"mlp_dist", *CORE})


@pytest.mark.slow
def test_wrong_flags_are_told_before_slow_packages_are_imported() -> None:
    code = """
import json, sys
import mlp_dist.train
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    loaded = set(json.loads(python(code)))
    assert loaded & {"accelerate", "mlflow", "matplotlib", "sklearn", "torchvision"} == set()


@pytest.mark.slow
def test_figures_do_without_pyplot() -> None:
    loaded = "[f'matplotlib.{name}' in sys.modules for name in ('figure', 'pyplot')]"
    assert python(f"import sys, mlp_dist.figures; print({loaded})") == "[True, False]\n"


@pytest.mark.slow
def test_models_are_built_and_asked_without_torchs_compiler() -> None:
    code = """
import sys, torch
from mlp_dist.core.models import build_model
from mlp_dist.core.spec import KINDS, ModelSpec
for kind in KINDS:
    build_model(ModelSpec((4, 3, 2), kind))(torch.zeros(1, 4))
print("sympy" in sys.modules)
"""
    assert python(code) == "False\n"
