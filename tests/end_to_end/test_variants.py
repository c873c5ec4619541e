"""Training options against torch's own parts, and on several processes against one."""

import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from mlp_dist.training.checkpoint import load_checkpoint
from mlp_dist.training.engines.cpu import CPUEngine
from tests.helpers.launching import ROOT, processes, run
from tests.helpers.plain_loop import PlainLoop
from tests.helpers.variants import PLAIN, STEPS_PER_EPOCH, VARIANTS, digits, fit, train, trainer

Result = dict[str, Any]

LOSSES = tuple(f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy"))
NUM_STEPS = 2 * STEPS_PER_EPOCH

BASE = PlainLoop(optimizer=functools.partial(SGD, lr=0.05), loss=nn.CrossEntropyLoss())


def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=NUM_STEPS, pct_start=0.25, cycle_momentum=False
    )


PLAIN_LOOPS = {
    "one batch": replace(BASE, optimizer=functools.partial(SGD, lr=0.2)),
    "clipping": replace(BASE, max_norm=0.2),
    "weight decay": replace(BASE, optimizer=functools.partial(SGD, lr=0.05, weight_decay=0.1)),
    "scratch-sgd": replace(BASE, optimizer=functools.partial(SGD, lr=0.05, weight_decay=0.1)),
    "adam": replace(BASE, optimizer=functools.partial(Adam, lr=0.0003)),
    "adamw": replace(BASE, optimizer=functools.partial(AdamW, lr=0.0003, weight_decay=1.0)),
    "label smoothing": replace(BASE, loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    "dropout": replace(BASE, dropout=0.3),
    "deformation": replace(BASE, deform=0.5, restyle=0.5),
    "adversarial": replace(BASE, adversarial=0.05),
    "augmentation": replace(BASE, shift=3),
    "one-cycle": replace(BASE, scheduler=one_cycle),
    "average": replace(BASE, average=0.9),
    "patience": replace(BASE, optimizer=functools.partial(SGD, lr=0.02)),
    "bf16": replace(BASE, optimizer=functools.partial(Adam, lr=0.002), autocast=torch.bfloat16),
    "float64 gradients, adamw": replace(BASE, optimizer=functools.partial(AdamW, lr=0.003, weight_decay=0.1)),
    "everything": replace(
        BASE,
        optimizer=functools.partial(SGD, lr=0.05, weight_decay=0.01),
        scheduler=lambda steps: lr_scheduler.LambdaLR(steps, everything_rate),
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        max_norm=1.0,
        dropout=0.2,
        shift=2,
        average=0.95,
    ),
}

PLAIN_LOOPS["float64 gradients, everything"] = PLAIN_LOOPS["everything"]

SEVERAL = ("tiny batches", "adamw", "adversarial", "bf16", "everything", "float64 gradients, everything")
"""The options that `make test` trains on two processes; all are trained nightly."""

# Adam divides by a gradient's size, which magnifies the rounding of gradients near 0.
TOLERANCES = {"adam": 1e-4, "adamw": 1e-4}


def everything_rate(step: int) -> float:
    """Four steps of warmup, then a cosine."""
    done = (step - 4) / (NUM_STEPS - 4)
    return (step + 1) / 4 if step < 4 else (1 + math.cos(math.pi * done)) / 2


HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")

# Compiling takes longer than everything else.
MARKS = {"compiled": [needs_compiler, pytest.mark.nightly]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """name -> the variant trained by this process."""
    directory = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda name: train(VARIANTS[name], directory))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, tuple[str, ...]], dict[str, Result]]:
    """(number of processes, names) -> the variants, trained in one launch."""

    @functools.cache
    def trained(number: int, names: tuple[str, ...]) -> dict[str, Result]:
        directory = tmp_path_factory.mktemp("together")
        script = str(ROOT / "tests/helpers/variants.py")
        words = ["accelerate", "launch", *processes(number), script, "results.pt"]
        done = run([*words, *names], directory, ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        results: dict[str, Result] = torch.load(directory / "results.pt", weights_only=True)
        return results

    return trained


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol)


# One process, against plain torch


def transposed(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The parameters in the shapes of nn.Linear."""
    fan_in = next(iter(state.values())).shape[0] == 784
    return [tensor.T if fan_in and tensor.dim() == 2 else tensor for tensor in state.values()]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


def plain(name: str, result: Result) -> tuple[nn.Sequential, Result]:
    """The model after as many epochs of the plain loop as in `result`, and the loop's result."""
    config, model = VARIANTS[name], perceptron()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), transposed(result["initial"]), strict=True):
            parameter.copy_(values)
    assert config.val_size is not None
    loop, epochs = PLAIN_LOOPS.get(name, BASE), len(result["history"])
    done = loop.run(model, digits(), val_size=config.val_size, batch_size=config.batch_size, epochs=epochs)
    return model, done


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in VARIANTS])
def test_trains_like_torch_s_own_parts(name: str, alone: Callable[[str], Result]) -> None:
    found = alone(name)
    model, expected = plain(name, found)
    # bfloat16 magnifies differences in rounding.
    atol = 1e-3 if name == "bf16" else TOLERANCES.get(name.removeprefix("float64 gradients, "), 2e-6)
    for which, state in (("weights", model.state_dict()), ("evaluated", expected["evaluated"])):
        for one, other in zip(transposed(found[which]), state.values(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=atol)
    for record, wanted in zip(found["history"], expected["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=atol), key
        assert record["learning_rate"] == pytest.approx(wanted["learning_rate"], rel=1e-6)


def farthest(one: Result, other: Result) -> float:
    pairs = zip(one["evaluated"].values(), other["evaluated"].values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_accumulation_divides_a_batch(tmp_path: Path) -> None:
    sizes: list[int] = []
    with trainer(replace(VARIANTS["accumulation"], epochs=1), tmp_path) as made:
        made.state.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        fit(made)
    assert sizes == [39, 40, 40] * 11 + [0, 0, 1]


def test_patience_stops_after_epochs_without_improvement(
    alone: Callable[[str], Result],
) -> None:
    found = alone("patience")
    accuracies = [record["val_accuracy"] for record in found["history"]]
    assert len(accuracies) < VARIANTS["patience"].epochs
    assert found["kept"] == accuracies.index(max(accuracies)) == len(accuracies) - 3
    # A single worse epoch doesn't stop the training.
    rising = itertools.pairwise(accuracies[: found["kept"] + 1])
    assert any(later < earlier for earlier, later in rising)
    assert farthest({"evaluated": found["best"]}, found) > 0


def test_logged_losses_are_means_over_steps(alone: Callable[[str], Result]) -> None:
    found = alone("log every")
    _, expected = plain("log every", found)
    for epoch, (record, wanted) in enumerate(zip(found["history"], expected["history"], strict=True)):
        # The last two steps of an epoch are too few.
        assert [logged["step"] - epoch * STEPS_PER_EPOCH for logged in record["steps"]] == [5, 10]
        for logged, first in zip(record["steps"], (0, 5), strict=True):
            steps = wanted["losses"][first : first + 5]
            mean = sum(loss * number for loss, number in steps) / sum(number for _, number in steps)
            assert logged["loss"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
@needs_compiler
def test_compile_compiles_the_model(tmp_path: Path) -> None:
    with trainer(VARIANTS["compiled"], tmp_path) as made:
        assert isinstance(made.engine.model, torch._dynamo.OptimizedModule)
    with trainer(PLAIN, tmp_path) as made:
        assert isinstance(made.engine, CPUEngine)


# Several processes, against one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "variants"),
    [
        (2, SEVERAL),
        pytest.param(2, tuple(VARIANTS), marks=[pytest.mark.nightly, needs_compiler]),
        # Four processes take long to compile.
        pytest.param(4, tuple(name for name in VARIANTS if name != "compiled"), marks=pytest.mark.nightly),
    ],
    ids=["two", "two, all", "four, all"],
)
def test_several_processes_train_the_same_weights(
    number: int,
    variants: tuple[str, ...],
    alone: Callable[[str], Result],
    together: Callable[[int, tuple[str, ...]], dict[str, Result]],
) -> None:
    results = together(number, variants)
    for name in variants:
        assert_same_training(name, results[name], alone(name))


def assert_same_training(name: str, found: Result, expected: Result) -> None:
    assert_close(found["initial"], expected["initial"], atol=0)
    if name == "bf16":
        # The shares' gradients are rounded to eight bits before they are added.
        for key, tensor in expected["weights"].items():
            difference = (found["weights"][key] - tensor).norm()
            assert 0 < difference < 0.2 * (tensor - expected["initial"][key]).norm()
    else:
        is_exact = VARIANTS[name].gradient_dtype == "float64"
        for which in ("weights", "evaluated", "best"):
            assert_close(found[which], expected[which], 0 if is_exact else TOLERANCES.get(name, 1e-5))
        assert found["kept"] == expected["kept"]
    atol = 0.05 if name == "bf16" else 1e-5
    for record, wanted in zip(found["history"], expected["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=atol), (name, key)
        assert (record["epoch"], record["learning_rate"]) == (wanted["epoch"], wanted["learning_rate"])
        for logged, other in zip(record["steps"], wanted["steps"], strict=True):
            assert logged["step"] == other["step"]
            assert logged["loss"] == pytest.approx(other["loss"], abs=1e-5)


# Resuming, and GPUs


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        (True, "bf16"),
        *(pytest.param(False, precision, marks=pytest.mark.gpu) for precision in ("no", "bf16", "fp16")),
    ],
)
def test_resumed_training_reaches_the_same_weights(cpu: bool, precision: str, tmp_path: Path) -> None:
    config = replace(VARIANTS["everything"], mixed_precision=precision, checkpoint_every_steps=17)
    with trainer(config, tmp_path, cpu=cpu) as made:
        whole = fit(made)
    checkpoint, _ = load_checkpoint(tmp_path)
    assert checkpoint.progress == f"step {17 - STEPS_PER_EPOCH} of epoch 2"
    with trainer(config, tmp_path, cpu=cpu, checkpoint=checkpoint) as made:
        resumed = fit(made)
    assert farthest(whole, resumed) == 0


@pytest.mark.gpu
def test_fp16_learns_with_a_scaled_loss(tmp_path: Path) -> None:
    config = replace(VARIANTS["bf16"], mixed_precision="fp16")
    with trainer(config, tmp_path, cpu=False) as made:
        found = fit(made)
        scale = made.accelerator.scaler.get_scale()
    with trainer(replace(config, mixed_precision="no"), tmp_path, cpu=False) as made:
        exact = fit(made)
    assert scale > 1
    assert all(tensor.dtype == torch.float32 for tensor in found["weights"].values())
    assert found["history"][-1]["val_accuracy"] > 0.8
    assert 0 < farthest(found, exact) < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes", [{}, {"accumulation_steps": 3}, {"dropout": 0.2, "clip_norm": 0.2}], ids=str
)
def test_compiled_model_on_a_gpu_trains_like_the_eager_one(changes: dict[str, Any], tmp_path: Path) -> None:
    """CUDA graphs reuse their outputs' memory, which must change neither gradients nor losses."""
    counters = torch._dynamo.utils.counters["inductor"]
    skipped = counters["cudagraph_skips"]
    config = replace(PLAIN, optimizer="adam", lr=0.0003, ema_decay=0.9, **changes)
    with trainer(replace(config, compile=True), tmp_path, cpu=False) as made:
        found = fit(made)
    with trainer(config, tmp_path, cpu=False) as made:
        expected = fit(made)
    assert counters["cudagraph_skips"] == skipped
    assert_close(found["weights"], expected["weights"], atol=1e-4)
    assert farthest(found, expected) < 1e-4
    for record, wanted in zip(found["history"], expected["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=1e-3), key
