"""What the README says is there is there."""

import re
import subprocess
import sys

import pytest

from tests.helpers.launching import ROOT

README = (ROOT / "README.md").read_text()
PAGES = README + "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
BLOCKS = re.findall(r"```\w*\n(.*?)```", PAGES, flags=re.DOTALL)


COMMAND = re.compile(
    r"(?P<name>launch/\w+\.py|-m (?:mlp_dist|serve|benchmarks|tests)\.\w+(?: (?:start|deploy|logs))?)"
    r"(?P<rest>[^#|;&`]*)"
)


def flags_by_command() -> dict[str, set[str]]:
    """The flags that the pages give to each command of the project, also where nothing executes them."""
    found: dict[str, set[str]] = {}
    for line in PAGES.replace("\\\n", " ").splitlines():
        for each in COMMAND.finditer(line):
            flags = re.findall(r"(?<!\S)\[?(--[\w-]+)", each["rest"])
            found.setdefault(each["name"], set()).update(flags)
    return {name: flags for name, flags in found.items() if flags}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), flags_by_command().items())
def test_every_flag_that_a_page_names_is_known(name: str, flags: set[str]) -> None:
    wanted = "--help-all" if name in ("launch/train.py", "-m mlp_dist.train") else "--help"
    done = subprocess.run(
        [sys.executable, *name.split(), wanted], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert flags <= set(re.findall(r"--[\w-]+", done.stdout))


def test_every_file_that_a_command_names_is_there() -> None:
    table = re.findall(r"^\|.*`(.*)` \|$", PAGES, flags=re.MULTILINE)
    commands = [line for text in (*BLOCKS, *table) for line in text.splitlines()]
    named = {path for line in commands for path in re.findall(r"(?:launch|serve)/[\w./-]+", line)}
    assert named
    for path in named:
        assert (ROOT / path).exists(), path
