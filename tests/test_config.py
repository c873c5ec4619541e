import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.config import TrainConfig, check_dataset_name
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import CheckpointError, UsageError

CONFIG = TrainConfig(recipe="small", dataset="digits", hidden_sizes=(32, 16), lr=0.1, batch_size=8, epochs=2)
FULL = replace(
    CONFIG,
    fallback_dataset="digits",
    optimizer="adam",
    seed=2**63 - 1,
    val_size=0,
    mixed_precision="bf16",
    data_dir=Path("/data"),
    output_dir=Path("outputs/run"),
    experiment="an experiment",
    run_name="a run",
    hidden_sizes=(),
    normalize=(0.5, 0.25),
    skip_bad_images=True,
    schedule="cosine",
    warmup_epochs=0.5,
    clip_norm=1.0,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fallback_dataset": "digit"}, "unknown data set 'digit'; did you mean digits?"),
        ({"hidden_sizes": (500, 0)}, "hidden-sizes is 500,0; it must be whole numbers as 256,64, at least 1"),
        ({"gradient_dtype": "float16"}, "gradient-dtype is 'float16'; it must be one of float32, float64"),
        ({"image_size": 10**6}, "image-size is 1000000; it must be a whole number, at least 1 and at most"),
        ({"normalize": (0.5, 0.0)}, "normalize is 0.5,0.0; it must be at most 1e6, with a std of at least"),
        ({"normalize": (float("nan"), 1.0)}, "normalize is (nan, 1.0); it must be two numbers as 0.5,0.5"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a number"),
        ({"epochs": True}, "epochs is True; it must be a whole number, at least 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be a whole number, at least 0 and at most"),
        ({"val_size": -1}, "val-size is -1; it must be a whole number, at least 0, or auto"),
        ({"weight_decay": float("nan")}, "weight-decay is nan; it must be a number, at least 0"),
        ({"dropout": None}, "dropout is None; it must be a number, at least 0 and below 1"),
        ({"compile": "yes"}, "compile is 'yes'; it must be true or false"),
        ({"warmup_epochs": 2.5}, "warmup-epochs is 2.5; it must be at most the 2 epochs in all"),
        ({"clip_norm": 0.0}, "clip-norm is 0.0; it must be a number, above 0, or none"),
        ({"augment_shift": 28}, "augment-shift is 28; it must be below the image size 28"),
        ({"patience": 2, "val_size": 0}, "patience is 2; it must be 0 without validation images"),
        ({"gradient_dtype": "float64", "mixed_precision": "bf16"}, "it must be float32 with mixed precision"),
        ({"experiment": "e" * 501}, "eee'; it must be at most 500 characters"),
        ({"run_name": "\x1b[31mred"}, "run-name is '\\x1b[31mred'; it must be a name without line breaks"),
    ],
)
def test_refuses_impossible_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        replace(CONFIG, **change)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["small", "full"])
def test_json_round_trip(config: TrainConfig) -> None:
    read = TrainConfig.from_json(json.loads(json.dumps(config.to_json(), allow_nan=False)))
    assert read == config
    assert isinstance(read.hidden_sizes, tuple)


def test_json_without_optional_fields_gets_their_defaults() -> None:
    needed = ("recipe", "dataset", "hidden_sizes", "lr", "batch_size", "epochs")
    values = CONFIG.to_json()
    assert TrainConfig.from_json({name: values[name] for name in needed}) == CONFIG


def test_json_of_another_version_is_refused() -> None:
    values = CONFIG.to_json()
    with pytest.raises(CheckpointError, match=r"mlp_dist \S+ does not know the .* fields momentum$"):
        TrainConfig.from_json({**values, "momentum": 0.9})


def test_an_unknown_data_set_lists_the_known(tmp_path: Path) -> None:
    for name in ("folder:", "MNIST"):
        message = rf"unknown data set '{name}'.* \(there are: {', '.join(CATALOG)}, folder:DIR, arrays:DIR\)"
        with pytest.raises(UsageError, match=message):
            check_dataset_name(name)
    with pytest.raises(UsageError, match=f"; for the images in that folder: folder:{tmp_path}$"):
        check_dataset_name(str(tmp_path))
