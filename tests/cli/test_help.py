"""Help pages: they fit a screen, describe each flag, and their examples are valid commands."""

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from mlp_dist.config import OPTIONS
from mlp_dist.console import command
from tests.helpers.calling import main_of

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 80
COMMANDS = (
    *(f"mlp_dist.{name}" for name in ("sweep", "compare", "promote", "sync")),
    *(f"serve.{name}" for name in ("package", "server", "client", "draw")),
    "launch.demo",
)
HEIGHTS = {
    **dict.fromkeys(COMMANDS, 33),
    **dict.fromkeys((f"serve.server {action}" for action in ("start", "logs", "deploy")), 18),
}
"""Each command, and the most lines of its help."""


@cache
def page(words: str) -> str:
    """The help page of `python -m words`."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setenv("COLUMNS", str(WIDTH))
        patch.setattr(sys, "argv", [*words.split(), *(["--help"] if "--" not in words else [])])
        with pytest.raises(SystemExit) as raised:
            main_of(words.split()[0])()
    assert raised.value.code == 0
    return output.getvalue()


def examples(text: str) -> list[str]:
    """The commands in the description, without the comments beside them."""
    found = re.findall(r"^  ((?:accelerate|python) .+)$", text, flags=re.M)
    return [re.split(r"\s{3,}", line)[0] for line in found]


@pytest.mark.parametrize("name", HEIGHTS)
def test_help_fits_a_screen_and_describes_every_flag(name: str) -> None:
    text = page(name)
    assert len(text.splitlines()) <= HEIGHTS[name]
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    flags = re.findall(r"^  (-.*|[A-Z_.]{2,}.*)$", text.partition("\noptions:\n")[2], flags=re.M)
    # The description of a long flag is on the next line.
    assert [flag for flag in flags if not re.search(r"\S {2,}\S", flag) and flag != "ACTION"] == []


def test_help_of_train_has_every_option_in_groups_and_the_recipe_s_values() -> None:
    text = page("mlp_dist.train --help --recipe mnist-best --lr 3")
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    described = re.findall(r"^  (?:-h, )?(--[\w-]+)(?:, --no-\S+)?(?: \S+)?\n? {2,}\w+", text, flags=re.M)
    others = {"--help", "--debug", "--list-recipes", "--resume"}
    flags = {option.flag for option in OPTIONS.values()}
    assert set(described) == flags - {"--fallback-dataset"} | others
    assert re.findall(r"^(\w.+):$", text, flags=re.M)[1:] == [
        *("What this command does", "What to train. Defaults are the recipe's", "How to train"),
        *("How to compute", "Against overfitting", "The images", "Where results go"),
    ]
    assert "Learning rate, the peak of a schedule. (default: 0.001)" in " ".join(text.split())
    assert "Widths of the hidden layers, or none. (default: 1024,1024)" in " ".join(text.split())


class ParsedError(Exception):
    pass


@pytest.mark.parametrize("name", ["mlp_dist.train", *COMMANDS])
def test_examples_are_valid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found, parse = examples(page(name)), command.Parser.parse_args

    def parse_and_stop(self: command.Parser, words: list[str] | None = None) -> None:
        parse(self, words)
        raise ParsedError

    monkeypatch.setattr(command.Parser, "parse_args", parse_and_stop)
    assert 1 <= len(found) <= 3
    for example in found:
        words = shlex.split(example)
        if words[0] == "accelerate":
            launched = launch_command_parser().parse_args(words[2:])
            assert launched.module
            words = ["python", "-m", launched.training_script, *launched.training_script_args]
        if words[1] == "-m":
            del words[1]
        else:
            assert (ROOT / words[1]).is_file()
            words[1] = words[1].removesuffix(".py").replace("/", ".")
        assert words[1 : 1 + len(name.split())] == name.split()
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(ParsedError):
            main_of(words[1])()
