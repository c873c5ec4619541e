"""Commands in README and docs name files that exist and flags that the commands know."""

import importlib
import pkgutil
import re
import sys

import pytest

from tests.helpers.launching import ROOT

PAGES = "".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))

COMMAND = re.compile(
    r"(?P<name>launch/\w+\.py|-m (?:mlp_dist|serve|benchmarks|tests)(?:\.\w+)+(?: (?:start|deploy|logs))?)"
    r"(?P<rest>[^#|;&`]*)"
)


def flags_by_command() -> dict[str, set[str]]:
    """The flags that pages give to each command of the project, also in blocks that no test runs."""
    found: dict[str, set[str]] = {}
    for line in PAGES.replace("\\\n", " ").splitlines():
        for each in COMMAND.finditer(line):
            module = each["name"].removeprefix("-m ").removesuffix(".py").replace("launch/", "launch.")
            flags = re.findall(r"(?<!\S)\[?(--[\w-]+)", each["rest"])
            found.setdefault(module, set()).update(flags)
    return found


def help_text(module: str, subcommand: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    # As a module of the package, mlp_dist.train would take the place of the function.
    main = importlib.import_module(module.replace("mlp_dist.", "mlp_dist.cli.")).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *subcommand, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "flags"), flags_by_command().items())
def test_every_flag_on_a_page_exists(name: str, flags: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    module, *subcommand = name.split()
    # docs/extending.md adds --momentum.
    assert flags - {"--momentum"} <= set(re.findall(r"--[\w-]+", help_text(module, subcommand, capsys)))


def test_every_path_on_a_page_exists() -> None:
    rooms = "mlp_dist|serve|launch|benchmarks|tests|docs|examples|docker"
    paths = set(re.findall(rf"(?<![\w/.-])(?:{rooms})/[\w./-]*\w", PAGES))
    paths -= {"benchmarks/results/CARD.json", "mlp_dist/mnist"}  # the latter is an experiment
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_module_on_a_page_exists() -> None:
    modules = set(re.findall(r"(?<![\w/.-])(?:mlp_dist|serve|benchmarks|tests)(?:\.\w+)+", PAGES))
    modules.remove("mlp_dist.key")  # a tag in MLflow
    assert len(modules) > 10
    assert [name for name in sorted(modules) if not importable(name)] == []


def importable(name: str) -> bool:
    """Whether `name` is a module, or an attribute of one, such as mlp_dist.core.bundle.Bundle."""
    try:
        # Importing the module mlp_dist.train would put it in the place of the function.
        pkgutil.resolve_name(re.sub(r"^mlp_dist\.train$", "mlp_dist.cli.train", name))
    except (ImportError, AttributeError):
        return False
    return True
