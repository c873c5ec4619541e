"""Mistakes that people make, typed as they make them: the message says what was wrong, and what to do.

Those that need a server, a training or a lack of something are told apart: no Java in test_server_command.py,
a full disk in test_checkpoint_damage.py and test_download.py, too little memory, of a GPU too, in
test_command.py, a run without a bundle in test_tracking.py, keys that have expired in test_client.py, ports
that are taken in test_draw.py and test_server_command.py.
"""

import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, run

pytestmark = pytest.mark.slow

HERE = {
    "junk.mar": "no archive",
    "file": "in the way",
    "page.png": "no image",
    "odd.toml": "[space]\nlearning_rate = [0.1, 0.2]\n",
    "keys.json": "{}",
}
"""What lies in the directory in which they are typed, and no run, model or server."""

TRAIN = "launch/train.py --dataset digits"

MISTAKES = {
    # The wrong directory
    "launch/compare.py": (2, "it has no mlflow.db; change to the directory"),
    "-m serve.package": (2, "it has no mlflow.db; change to the directory"),
    "launch/promote.py 'mnist seed=0'": (2, "it has no mlflow.db; change to the directory"),
    "launch/sync.py .": (2, "holds no run: there is no run.json in it; name a training's --output-dir"),
    "launch/draw.py": (2, "no packaged model: there is no model_store/mlp.mar; train one"),
    "launch/demo.py": (2, "there is no model_store/mlp.mar; package a run first: python -m serve.package"),
    "-m serve.server start": (2, "there is no model_store/mlp.mar; package a run first"),
    "-m serve.server logs": (2, "no server was started here: python -m serve.server start"),
    "-m serve.server deploy new.mar": (2, "there is no new.mar; package a run first"),
    f"{TRAIN} --resume": (2, "no run under"),
    "launch/sweep.py --resume": (2, "there is no sweep under"),
    # Misspelt
    "launch/train.py --recipe mnits": (2, "unknown recipe 'mnits'; did you mean mnist?"),
    "launch/train.py --dataset MNSIT": (2, "unknown data set 'MNSIT'; did you mean mnist?"),
    f"{TRAIN} --optimizer adm": (2, "invalid choice: 'adm'; did you mean adam?"),
    f"{TRAIN} --epoch 3": (2, "unknown argument '--epoch'; did you mean --epochs?"),
    "-m serve.server strat": (2, "invalid choice: 'strat'; did you mean start?"),
    "-m serve.server start --prot 1": (2, "unknown argument '--prot'; did you mean --port?"),
    "launch/sweep.py odd.toml": (2, "odd.toml: unknown field 'learning_rate'"),
    "launch/show_data.py --dataset digit": (2, "unknown data set 'digit'; did you mean digits?"),
    # Values that cannot be
    f"{TRAIN} --epochs 0": (2, "epochs is 0; it must be 1 or more"),
    f"{TRAIN} --lr -1": (2, "lr is -1.0; it must be a number above 0"),
    f"{TRAIN} --batch-size ten": (2, "argument --batch-size: invalid int value: 'ten'"),
    f"{TRAIN} --output-dir file": (2, "/file cannot be made (File exists); choose another --output-dir"),
    "launch/train.py --dataset folder:nowhere": (1, "nowhere is not a directory"),
    "launch/sweep.py": (2, "no search space; name one: python -m mlp_dist.sweep SPACE.toml"),
    "launch/sweep.py nowhere.toml": (2, "cannot read the search space nowhere.toml"),
    "launch/compare.py --top 0": (2, "top is 0; it must be 1 or more"),
    # Files that are none
    "launch/demo.py --mar junk.mar": (1, "junk.mar is damaged: File is not a zip file; package it again"),
    "-m serve.server start junk.mar": (1, "junk.mar is damaged: File is not a zip file; package it again"),
    "-m serve.client seven.png": (2, "no such file: seven.png"),
    "-m serve.client .": (2, ". is a directory; name the images in it, as ./*.png"),
    "-m serve.client page.png --key-file key.json": (2, "no such file: key.json"),
    "-m serve.client page.png --key-file keys.json": (1, "keys.json is not a key file"),
    # Servers that are none
    "-m serve.client page.png --url ftp://host": (2, "it looks like http://127.0.0.1:8080"),
    "-m serve.client page.png --url http://127.0.0.1:9": (1, "; start the server: torchserve --start"),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_it_is_told_in_a_line_and_leaves_nothing(typed: str, tmp_path: Path) -> None:
    code, message = MISTAKES[typed]
    for name, text in HERE.items():
        (tmp_path / name).write_text(text)
    words = [str(ROOT / word) if word.startswith("launch/") else word for word in shlex.split(typed)]
    done = run([sys.executable, *words], tmp_path)
    assert message in done.stderr, done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {".serve"} == set(HERE)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    uri = "http://127.0.0.1:9"
    done = run([sys.executable, str(ROOT / "launch/compare.py")], tmp_path, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert (
        f"error: MLflow at {uri} cannot be read: Connection refused; see MLFLOW_TRACKING_URI" in done.stderr
    )
    assert "Traceback" not in done.stderr
