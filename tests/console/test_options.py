"""What the words of a command line set. tests/test_recipes.py reads back the words for every option."""

from dataclasses import replace
from typing import Any

import pytest

from mlp_dist.config import GROUPS, OPTIONS, TrainConfig
from mlp_dist.console.options import parse
from mlp_dist.recipes import get_recipe


def parsed(words: list[str], config: TrainConfig | None = None) -> dict[str, Any]:
    defaults = vars(config or get_recipe("mnist-quick"))
    return parse(words, GROUPS, defaults, prog="tool", description="A tool.", advice={"--rate": "use --lr"})


def test_only_what_the_words_set_is_returned() -> None:
    assert parsed([]) == {}
    assert parsed(["--lr", "0.1", "--lr=0.2", "--skip_bad_images"]) == {"lr": 0.2, "skip_bad_images": True}
    assert parsed(["--val-size", "auto", "--normalize", "data"]) == {"val_size": None, "normalize": None}
    assert parsed(OPTIONS["run_name"].words("-x")) == {"run_name": "-x"}
    compiled = replace(get_recipe("mnist-quick"), compile=True)
    assert parsed(OPTIONS["compile"].words(False), compiled) == {"compile": False}


def test_only_the_main_process_prints_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match=r"^0$"):
            parsed(["--help"])
        assert ("--lr X" in capsys.readouterr().out) == (rank == "0")
