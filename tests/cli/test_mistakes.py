"""Frequent mistakes: the message names the problem and a fix, and nothing is left behind.

Mistakes that need a server, a training or a missing resource have their tests elsewhere.
"""

from pathlib import Path

import pytest
import torch

from tests.helpers.calling import Call

FILES = {
    "junk.mar": "no archive",
    "file": "in the way",
    "page.png": "no image",
    "odd.toml": "[space]\nlearning_rate = [0.1, 0.2]\n",
    "keys.json": "{}",
}
"""The files in the current directory, which has no run, model or server."""

TRAIN = "mlp_dist.train --recipe mnist-quick --dataset digits"

MISTAKES = {
    # Wrong directory
    "mlp_dist.compare": (2, "it has no mlflow.db; change to the directory the training was started in"),
    "serve.package": (2, "it has no mlflow.db; change to the directory the training was started in"),
    "mlp_dist.promote 'seed=0 · mnist'": (2, "it has no mlflow.db; change to the directory"),
    "mlp_dist.sync .": (2, "holds no run: there is no run.json in it; name a training's --output-dir"),
    "serve.draw": (2, "there is no model_store/mlp.mar; package a run first: python -m serve.package"),
    "launch.demo": (2, "there is no model_store/mlp.mar; package a run first: python -m serve.package"),
    "serve.server start": (2, "there is no model_store/mlp.mar; package a run first"),
    "serve.server logs": (2, "no server was started here: python -m serve.server start"),
    "serve.server deploy new.mar": (2, "there is no new.mar; package a run first"),
    f"{TRAIN} --resume": (2, "no run under"),
    f"{TRAIN} --resume --output-dir nowhere": (2, "nowhere has no last.pt, so there is nothing to resume"),
    "mlp_dist.sweep --resume": (2, "there is no sweep under"),
    # Misspelt
    "mlp_dist.train --recipe mnits": (2, "unknown recipe 'mnits'; did you mean mnist?"),
    "mlp_dist.train --dataset MNSIT": (2, "unknown data set 'MNSIT'; did you mean mnist?"),
    f"{TRAIN} --optimizer adm": (2, "it must be one of sgd, adam, scratch-sgd; did you mean adam?"),
    f"{TRAIN} --resume outputs/a": (2, "to continue the run in a directory: --resume --output-dir DIR"),
    f"{TRAIN} --epoch 3": (2, "unknown argument '--epoch'; did you mean --epochs?"),
    f"{TRAIN} --learning_rate 1": (2, "unknown argument '--learning-rate'; use --lr"),
    f"{TRAIN} --workers 4": (2, "accelerate launch --num_processes N, before the script"),
    f"{TRAIN} --device cuda": (2, "accelerate launch --cpu, --gpu_ids 0 or --multi_gpu"),
    f"{TRAIN} --verbose": (2, "unknown argument '--verbose'; --log-every N prints the loss every N steps"),
    f"{TRAIN} --hidden-sizes 256 64": (2, "unknown argument '64'\n(accelerate launch -m"),
    f"{TRAIN} --compile=no": (2, "argument --compile/--no-compile: ignored explicit argument 'no'"),
    "serve.draw --quite-another": (2, "unknown argument '--quite-another'\n(python -m serve"),
    "serve.server strat": (2, "invalid choice: 'strat'; did you mean start?"),
    "serve.server start --prot 1": (2, "unknown argument '--prot'; did you mean --port?"),
    "mlp_dist.sweep odd.toml": (2, "odd.toml: unknown field 'learning_rate'"),
    # Impossible values
    f"{TRAIN} --lr -1": (2, "lr is -1.0; it must be a number, above 0"),
    f"{TRAIN} --batch-size ten": (2, "batch-size is 'ten'; it must be a whole number, at least 1"),
    f"{TRAIN} --lr --epochs 3": (2, "argument --lr: expected one argument"),
    f"{TRAIN} --normalize 0.5": (2, "normalize is (0.5,); it must be two numbers as 0.5,0.5, or none, or"),
    f"{TRAIN} --resume auto": (2, "resume is auto; it needs --output-dir"),
    f"{TRAIN} --mixed-precision fp16": (2, "fp16 needs a GPU; bf16 works on the CPU too"),
    f"{TRAIN} --val-size 1437": (2, "val-size 1437 leaves nothing to train on: scikit-learn's handwritten"),
    f"{TRAIN} --output-dir file": (2, "/file (File exists); choose another --output-dir"),
    "mlp_dist.train --dataset folder:nowhere": (1, "nowhere is not a directory"),
    "mlp_dist.sweep": (2, "no search space; name one: python -m mlp_dist.sweep SPACE.toml"),
    "mlp_dist.sweep nowhere.toml": (2, "cannot read the search space nowhere.toml"),
    "mlp_dist.compare --top 0": (2, "top is 0; it must be 1 or more"),
    "mlp_dist.compare --top many": (2, "argument --top: invalid int value: 'many'"),
    "mlp_dist.sweep odd.toml --workers 0": (2, "workers is 0; it must be 1 or more"),
    # Unusable files
    "launch.demo --mar junk.mar": (1, "junk.mar is damaged: File is not a zip file; package it again"),
    "serve.server start junk.mar": (1, "junk.mar is damaged: File is not a zip file; package it again"),
    "serve.client seven.png": (2, "no such file: seven.png"),
    "serve.client .": (2, ". is a directory; name the images in it, as ./*.png"),
    "serve.client page.png --key-file key.json": (2, "no such file: key.json"),
    "serve.client page.png --key-file keys.json": (1, "keys.json is not a key file"),
    # Missing servers
    "serve.client page.png --url ftp://host": (2, "it looks like http://127.0.0.1:8080"),
    "serve.client page.png --url http://127.0.0.1:9": (1, "; start the server: torchserve --start"),
}
if torch.cuda.is_available():
    del MISTAKES[f"{TRAIN} --mixed-precision fp16"]


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_a_fix(
    line: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, message = MISTAKES[line]
    monkeypatch.setattr("serve.client.KEY_SECONDS", 0.1)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = call(line)
    assert message in done.stderr, done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {".serve"} == set(FILES)


def test_an_unreachable_mlflow_is_named(call: Call) -> None:
    uri = "http://127.0.0.1:9"
    done = call("mlp_dist.compare", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert (
        f"error: MLflow at {uri} cannot be read: Connection refused; see MLFLOW_TRACKING_URI" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_compiling_needs_a_compiler(call: Call) -> None:
    done = call(f"{TRAIN} --compile", CXX="no-such-compiler")
    assert done.returncode == 2
    assert "compile needs a C++ compiler, and no-such-compiler was not found: install it" in done.stderr
