import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.config import (
    DEFAULT_EXPERIMENT,
    FREE_ON_RESUME,
    INITIALIZATIONS,
    OPTIMIZERS,
    PRECISIONS,
    TO_TENSOR,
    TrainConfig,
    check_dataset_name,
    unknown,
)
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.spec import KINDS

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
    model="layers",
    initialization="normal_0.1",
    image_size=32,
    normalize=(0.5, 0.25),
    skip_bad_images=True,
    log_every=100,
    schedule="cosine",
    warmup_epochs=0.5,
    accumulation_steps=4,
    clip_norm=1.0,
    weight_decay=0.01,
    label_smoothing=0.1,
    dropout=0.2,
    augment_shift=2,
    ema_decay=0.999,
    compile=True,
    checkpoint_every_steps=50,
)


def test_defaults() -> None:
    assert (CONFIG.optimizer, CONFIG.seed, CONFIG.mixed_precision) == ("sgd", 0, "no")
    assert CONFIG.experiment == DEFAULT_EXPERIMENT
    assert [
        CONFIG.fallback_dataset,
        CONFIG.val_size,
        CONFIG.data_dir,
        CONFIG.output_dir,
        CONFIG.run_name,
    ] == [None] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "mnits"}, "unknown data set 'mnits'; did you mean mnist?"),
        ({"hidden_sizes": (500, 0)}, "hidden sizes is (500, 0); it must be 1 or more"),
        ({"optimizer": "lion"}, "optimizer is lion; it must be one of sgd, adam"),
        ({"model": "cnn"}, "model is cnn; it must be one of module, tensor, layers"),
        ({"initialization": "zeros"}, "initialization is zeros; it must be one of linear, normal_fan_in, "),
        ({"image_size": 0}, "image-size is 0; it must be from 1 to 4096 pixels"),
        (
            {"normalize": (0.5, 0.0)},
            "normalize is 0.5,0; it must be a mean of at most 1e6 and a std from",
        ),
        ({"normalize": (0.5, -1.0)}, "normalize is 0.5,-1; it must be"),
        ({"normalize": (float("nan"), 1.0)}, "normalize is nan,1; it must be"),
        ({"normalize": (0.0, float("inf"))}, "normalize is 0,inf; it must be"),
        ({"normalize": (0.5, 1e-50)}, "normalize is 0.5,1e-50; it must be"),
        ({"normalize": (1e30, 1.0)}, "normalize is 1e+30,1; it must be"),
        ({"image_size": 10**6}, "image-size is 1000000; it must be from 1 to 4096 pixels"),
        ({"hidden_sizes": (10**10,)}, "hidden sizes is (10000000000,); it must be at most 1,000,000,000"),
        ({"log_every": -1}, "log-every is -1; it must be 0 or more"),
        ({"lr": 0.0}, "lr is 0.0; it must be a number above 0"),
        ({"lr": -0.1}, "lr is -0.1; it must be a number above 0"),
        ({"lr": float("nan")}, "lr is nan; it must be a number above 0"),
        ({"lr": float("inf")}, "lr is inf; it must be a number above 0"),
        ({"batch_size": 0}, "batch-size is 0; it must be 1 or more"),
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"epochs": -3}, "epochs is -3; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 2^63 - 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be from 0 to 2^63 - 1"),
        ({"val_size": -1}, "val-size is -1; it must be 0 or more"),
        ({"mixed_precision": "fp8"}, "mixed-precision is fp8; it must be one of no, bf16, fp16"),
        ({"experiment": ""}, "experiment is ''; it must be a name"),
        ({"experiment": "  "}, "experiment is '  '; it must be a name"),
        (
            {"experiment": "e" * 501},
            "eee'; it must be at most 500 characters",
        ),
        ({"experiment": "a\nb"}, "experiment is 'a\\nb'; it must be a name without line breaks"),
        ({"run_name": " "}, "run-name is ' '; it must be a name"),
        ({"run_name": "\x1b[31mred"}, "run-name is '\\x1b[31mred'; it must be a name without line breaks"),
        ({"run_name": "bad\udcff"}, "run-name is 'bad\\udcff'; it must be a name without line breaks"),
        ({"schedule": "cosin"}, "schedule is cosin; it must be one of constant, cosine, linear, one-cycle"),
        ({"warmup_epochs": -1}, "warmup-epochs is -1; it must be from 0 to the 2 epochs of the training"),
        ({"warmup_epochs": 2.5}, "warmup-epochs is 2.5; it must be from 0 to the 2 epochs"),
        ({"accumulation_steps": 0}, "accumulation-steps is 0; it must be 1 or more"),
        ({"clip_norm": 0.0}, "clip-norm is 0.0; it must be a number above 0"),
        ({"clip_norm": float("inf")}, "clip-norm is inf; it must be a number above 0"),
        ({"weight_decay": -0.1}, "weight-decay is -0.1; it must be 0 or more"),
        ({"weight_decay": float("nan")}, "weight-decay is nan; it must be 0 or more"),
        ({"label_smoothing": 1.0}, "label-smoothing is 1.0; it must be from 0 to below 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be from 0 to below 1"),
        (
            {"matmul_precision": "low"},
            "matmul-precision is low; it must be one of auto, highest",
        ),
        ({"deform": -1.0}, "deform is -1.0; it must be 0 or more"),
        ({"adversarial": 1.0}, "adversarial is 1.0; it must be from 0 to below 1"),
        ({"ema_decay": 1.0}, "ema-decay is 1.0; it must be from 0 to below 1"),
        ({"augment_shift": 28}, "augment-shift is 28; it must be from 0 to below the 28 pixels of an image"),
        ({"patience": -1}, "patience is -1; it must be 0 or more"),
        ({"patience": 2, "val_size": 0}, "patience is 2; it must be 0 where val-size is 0"),
        (
            {"gradient_dtype": "float16"},
            "gradient-dtype is float16; it must be one of float32, float64",
        ),
        (
            {"gradient_dtype": "float64", "mixed_precision": "bf16"},
            "gradient-dtype is float64; it must be float32 with mixed precision or --compile",
        ),
        (
            {"gradient_dtype": "float64", "compile": True},
            "it must be float32 with mixed precision or",
        ),
        ({"checkpoint_every_steps": -1}, "checkpoint-every-steps is -1; it must be 0 or more"),
        ({"fallback_dataset": "digit"}, "unknown data set 'digit'; did you mean digits?"),
    ],
)
def test_values_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        replace(CONFIG, **change)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        *({"dataset": name} for name in (*CATALOG, "folder:.", "folder:/a b/c")),
        *({"optimizer": name} for name in OPTIMIZERS),
        *({"mixed_precision": name} for name in PRECISIONS),
        *({"model": name} for name in KINDS),
        *({"initialization": name} for name in INITIALIZATIONS),
        {"normalize": TO_TENSOR},
        {"normalize": (-1.0, 1e-3)},
        {"image_size": 4096},
        {"hidden_sizes": ()},
        {"hidden_sizes": (1,)},
        {"lr": 1e-12},
        {"batch_size": 1},
        {"epochs": 1},
        {"val_size": 0},
    ],
    ids=str,
)
def test_values_that_can_be(change: dict[str, Any]) -> None:
    config = replace(CONFIG, **change)
    assert {name: getattr(config, name) for name in change} == change


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CONFIG.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["small", "full"])
def test_json_round_trip(config: TrainConfig) -> None:
    read = TrainConfig.from_json(json.loads(json.dumps(config.to_json(), allow_nan=False)))
    assert read == config
    assert isinstance(read.hidden_sizes, tuple)


def test_json_of_a_version_with_fewer_fields_gets_their_defaults() -> None:
    needed = ("recipe", "dataset", "hidden_sizes", "lr", "batch_size", "epochs")
    values = CONFIG.to_json()
    assert TrainConfig.from_json({name: values[name] for name in needed}) == CONFIG


def test_json_with_other_fields_is_refused() -> None:
    values = CONFIG.to_json()
    for name in ("recipe", "dataset", "hidden_sizes", "lr", "batch_size", "epochs"):
        lacking = {other: value for other, value in values.items() if other != name}
        with pytest.raises(
            CheckpointError, match=rf"needs the fields .*'{name}'.* written by another version"
        ):
            TrainConfig.from_json(lacking)
    with pytest.raises(CheckpointError, match=r"found .*'momentum'"):
        TrainConfig.from_json({**values, "momentum": 0.9})


def test_json_with_a_value_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="epochs is 0"):
        TrainConfig.from_json({**CONFIG.to_json(), "epochs": 0})


@pytest.mark.parametrize(
    ("epochs", "patience", "num_epochs", "kept", "over"),
    [
        (5, 0, 4, 0, False),
        (5, 0, 5, 4, True),
        (5, 2, 0, 0, False),
        (5, 2, 1, 0, False),
        (5, 2, 2, 0, False),
        (5, 2, 3, 0, True),
        (5, 2, 3, 1, False),
        (5, 2, 4, 1, True),
    ],
)
def test_when_a_training_is_over(epochs: int, patience: int, num_epochs: int, kept: int, over: bool) -> None:
    config = replace(CONFIG, epochs=epochs, patience=patience)
    assert config.is_over(num_epochs, kept) == over


def test_free_on_resume_are_fields() -> None:
    assert set(FREE_ON_RESUME) <= set(CONFIG.to_json())


@pytest.mark.parametrize("name", ["", "folder", "folder:", "MNIST", "auto", "cifar10"])
def test_unknown_data_set_lists_all(name: str) -> None:
    message = rf"unknown data set '{name}'.* \(there are: {', '.join(CATALOG)}, folder:DIR, arrays:DIR\)"
    with pytest.raises(UsageError, match=message):
        check_dataset_name(name)


def test_a_directory_s_name_is_told_how_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"; for the images in that folder: folder:{tmp_path}$"):
        check_dataset_name(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adm", "unknown optimizer 'adm'; did you mean adam? (there are: sgd, adam, scratch-sgd)"),
        ("xyz", "unknown optimizer 'xyz' (there are: sgd, adam, scratch-sgd)"),
    ],
)
def test_unknown_names_the_nearest(name: str, message: str) -> None:
    assert unknown("optimizer", name, (each for each in OPTIMIZERS)) == message
