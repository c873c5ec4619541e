import dataclasses
import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from mlp_dist.config import TrainConfig
from mlp_dist.console import command
from tests.helpers.launching import environment

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 80
ACTIONS = ("start", "status", "logs", "stop", "deploy")
HEIGHTS = {
    "-m mlp_dist.train": 41,
    **dict.fromkeys(
        (f"-m mlp_dist.{name}" for name in ("sweep", "compare", "promote", "sync", "show_data")), 33
    ),
    "launch/demo.py": 33,
    **dict.fromkeys((f"-m serve.{name}" for name in ("package", "server", "client", "draw")), 33),
    **dict.fromkeys((f"-m serve.server {action}" for action in ACTIONS), 18),
}
"""Each command, and the lines that its help may have."""


@functools.cache
def page(name: str) -> str:
    done = subprocess.run(
        [sys.executable, *name.split(), "--help"],
        cwd=ROOT,
        env=environment(COLUMNS=str(WIDTH)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def examples(text: str) -> list[str]:
    """The commands in the description, without what stands beside them."""
    found = re.findall(r"^  ((?:accelerate|python) .+)$", text.partition("\noptions:")[0], flags=re.M)
    return [re.split(r"\s{3,}", line)[0] for line in found]


@pytest.mark.parametrize("name", HEIGHTS)
def test_help_fits_a_screen_and_has_examples(name: str) -> None:
    lines = page(name).splitlines()
    assert len(lines) <= HEIGHTS[name]
    assert [line for line in lines if len(line) > WIDTH] == []
    assert (1 if _is_action(name) else 2) <= len(examples(page(name))) <= 3


def test_all_flags_of_the_training_are_told_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--help-all"],
        cwd=ROOT,
        env=environment(COLUMNS=str(WIDTH)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    flags = set(re.findall(r"^  (?:-h, )?(--[\w-]+)", done.stdout, flags=re.M))
    others = {"--help", "--help-all", "--debug", "--list-recipes", "--resume", "--population", "--sweep"}
    fields = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainConfig)}
    assert flags == fields - {"--fallback-dataset"} | others
    assert [line for line in done.stdout.splitlines() if len(line) > WIDTH] == []
    told = set(re.findall(r"^  (?:-h, )?(--[\w-]+)", page("-m mlp_dist.train"), flags=re.M))
    assert {"--help-all", "--lr"} < told < flags


@pytest.mark.parametrize("name", HEIGHTS)
def test_flags_are_in_groups_and_each_says_what_it_does(name: str) -> None:
    _, _, told = page(name).partition("\noptions:\n")
    alone, _, _ = told.partition("\n\n")
    assert len(alone.splitlines()) == 2 + (name == "-m mlp_dist.train") or _is_action(name)
    flags = re.findall(r"^  (-.*|[A-Z_.]{2,}.*)$", told, flags=re.M)
    # What does not fit beside a long one stands below it.
    assert [flag for flag in flags if not re.search(r"\S {2,}\S", flag) and flag != "ACTION"] == []


def _is_action(name: str) -> bool:
    return name.split()[-1] in ACTIONS


class ParsedError(Exception):
    pass


@pytest.mark.parametrize("name", HEIGHTS)
def test_examples_are_understood_as_they_stand(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    parse = command.Parser.parse_args

    def parse_and_stop(self: command.Parser) -> None:
        parse(self)
        raise ParsedError

    monkeypatch.setattr(command.Parser, "parse_args", parse_and_stop)
    for example in examples(page(name)):
        words = shlex.split(example)
        if words[0] == "accelerate":
            launched = launch_command_parser().parse_args(words[2:])
            assert launched.module
            words = ["python", "-m", launched.training_script, *launched.training_script_args]
        target = words[1:3] if words[1] == "-m" else words[1:2]
        assert target == name.split()[: len(target)]
        assert [word for word in words if word.startswith("launch/") and not (ROOT / word).is_file()] == []
        monkeypatch.setattr(sys, "argv", words[len(target) :])
        with pytest.raises(ParsedError):
            importlib.import_module(_module(target[-1])).main()


def _module(target: str) -> str:
    if target.startswith("serve.") or target == "launch/demo.py":
        return target.removesuffix(".py").replace("/", ".")
    return target.replace("mlp_dist.", "mlp_dist.cli.")
