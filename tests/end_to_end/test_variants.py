"""Every option of training: it does what it says, and the same on any number of processes."""

import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from mlp_dist.core.image import normalize
from mlp_dist.training.checkpoint import load_checkpoint
from mlp_dist.training.engines.cpu import CPUEngine
from tests.helpers.launching import ROOT, run
from tests.helpers.plain_loop import PlainLoop
from tests.helpers.variants import (
    PLAIN,
    STEPS_PER_EPOCH,
    VARIANTS,
    copied,
    digits,
    fit,
    take_step,
    train,
    trainer,
)

Result = dict[str, Any]

LOSSES = tuple(f"{part}_{what}" for part in ("train", "val", "test") for what in ("loss", "accuracy"))
NUM_STEPS, WARMUP_STEPS = 2 * STEPS_PER_EPOCH, STEPS_PER_EPOCH // 2
REST = NUM_STEPS - WARMUP_STEPS

BASE = PlainLoop(optimizer=functools.partial(SGD, lr=0.05), loss=nn.CrossEntropyLoss())


def warmed_up(
    optimizer: torch.optim.Optimizer, then: lr_scheduler.LRScheduler | None = None
) -> lr_scheduler.LRScheduler:
    warmup = lr_scheduler.LinearLR(
        optimizer, start_factor=1 / WARMUP_STEPS, end_factor=1, total_iters=WARMUP_STEPS - 1
    )
    return warmup if then is None else lr_scheduler.SequentialLR(optimizer, [warmup, then], [WARMUP_STEPS])


def cosine(optimizer: torch.optim.Optimizer, steps: int = NUM_STEPS) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def linear(optimizer: torch.optim.Optimizer, steps: int = NUM_STEPS) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=steps)


def one_cycle(optimizer: torch.optim.Optimizer, share: float = 0.3) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=NUM_STEPS, pct_start=share, cycle_momentum=False
    )


PLAIN_LOOPS = {
    "plain": BASE,
    "tensor": BASE,
    "layers": BASE,
    "tiny batches": BASE,
    "one batch": replace(BASE, optimizer=functools.partial(SGD, lr=0.2)),
    "accumulation": BASE,
    "clipping": replace(BASE, max_norm=0.2),
    "weight decay": replace(BASE, optimizer=functools.partial(SGD, lr=0.05, weight_decay=0.1)),
    "scratch-sgd": replace(BASE, optimizer=functools.partial(SGD, lr=0.05, weight_decay=0.1)),
    "adam": replace(BASE, optimizer=functools.partial(Adam, lr=0.0003)),
    "adamw": replace(BASE, optimizer=functools.partial(AdamW, lr=0.0003, weight_decay=1.0)),
    "label smoothing": replace(BASE, loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    "dropout": replace(BASE, dropout=0.3),
    "deformation": replace(BASE, deform=0.5),
    "adversarial": replace(BASE, adversarial=0.05),
    "augmentation": replace(BASE, shift=3),
    "warm-up": replace(BASE, scheduler=warmed_up),
    "cosine": replace(BASE, scheduler=cosine),
    "cosine, warm-up": replace(BASE, scheduler=lambda steps: warmed_up(steps, cosine(steps, REST))),
    "linear": replace(BASE, scheduler=linear),
    "linear, warm-up": replace(BASE, scheduler=lambda steps: warmed_up(steps, linear(steps, REST))),
    "one-cycle": replace(BASE, scheduler=one_cycle),
    "one-cycle, warm-up": replace(
        BASE, scheduler=functools.partial(one_cycle, share=WARMUP_STEPS / NUM_STEPS)
    ),
    "average": replace(BASE, average=0.9),
    "patience": replace(BASE, optimizer=functools.partial(SGD, lr=0.02)),
    "log every": BASE,
    "bf16": replace(BASE, optimizer=functools.partial(Adam, lr=0.002), autocast=torch.bfloat16),
    "compiled": BASE,
    "float64 gradients": BASE,
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

PLAIN_LOOPS |= {
    "float64 gradients, adamw": replace(BASE, optimizer=functools.partial(AdamW, lr=0.003, weight_decay=0.1)),
    "float64 gradients, everything": PLAIN_LOOPS["everything"],
    "float64 gradients, tiny batches": BASE,
}

SAME_AS_PLAIN = ("accumulation", "compiled", "log every")
"""These change how a step is computed, or what is told of it, and nothing else."""

# Adam divides a gradient by its size: of one that is all but zero nothing but rounding is left, at full size.
TOLERANCES = {"adam": 1e-4, "adamw": 1e-4}


def everything_rate(step: int) -> float:
    """The 0.3 epochs of warm-up are four steps."""
    done = (step - 4) / (NUM_STEPS - 4)
    return (step + 1) / 4 if step < 4 else (1 + math.cos(math.pi * done)) / 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """name -> the variant trained by this process."""
    directory = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda name: train(VARIANTS[name], directory))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Result]]:
    """A number of processes -> the variants, trained by so many in one launch."""

    @functools.cache
    def trained(number: int) -> dict[str, Result]:
        directory = tmp_path_factory.mktemp("together")
        launcher = ["--multi_gpu", "--num_processes", str(number), "--main_process_port", "0"]
        words = ["accelerate", "launch", *launcher, str(ROOT / "tests/helpers/variants.py"), "results.pt"]
        names = [name for several, name in RUNS if several == number and (HAS_COMPILER or name != "compiled")]
        done = run([*words, *names], directory, ACCELERATE_USE_CPU="true", PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        results: dict[str, Result] = torch.load(directory / "results.pt", weights_only=True)
        return results

    return trained


# To compile it for each of four processes takes longer than all the others.
RUNS = [(2, name) for name in VARIANTS] + [(4, name) for name in VARIANTS if name != "compiled"]
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")


def params(cases: Iterable[Any]) -> list[Any]:
    """What a test is parametrized with: `cases` of (number, name) or of names."""
    return [
        pytest.param(*found, marks=needs_compiler if "compiled" in found else ())
        for found in ((case,) if isinstance(case, str) else case for case in cases)
    ]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol)


# One process, against plain torch


def transposed(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Whatever the kind of the model, the parameters as nn.Linear has them."""
    fan_in = next(iter(state.values())).shape[0] == 784
    return [tensor.T if fan_in and tensor.dim() == 2 else tensor for tensor in state.values()]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


def plain(name: str, result: Result) -> tuple[nn.Sequential, Result]:
    """The model that the plain loop trains in the same epochs as `result`, and what the loop tells."""
    config, model = VARIANTS[name], perceptron()
    with torch.no_grad():
        for parameter, values in zip(model.parameters(), transposed(result["initial"]), strict=True):
            parameter.copy_(values)
    assert config.val_size is not None
    loop, epochs = PLAIN_LOOPS[name], len(result["history"])
    told = loop.run(model, digits(), val_size=config.val_size, batch_size=config.batch_size, epochs=epochs)
    return model, told


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", params(VARIANTS))
def test_it_trains_as_torch_s_own_parts_do(name: str, alone: Callable[[str], Result]) -> None:
    found = alone(name)
    model, expected = plain(name, found)
    # Gradients of eight bits turn to the next one where a sum is rounded otherwise.
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


@pytest.mark.parametrize(
    "name", params(name for name, config in VARIANTS.items() if config != PLAIN and config.model == "module")
)
def test_every_option_but_those_that_must_not_changes_the_weights(
    name: str, alone: Callable[[str], Result]
) -> None:
    difference = farthest(alone(name), alone("plain"))
    if name in SAME_AS_PLAIN:
        assert difference < 1e-6
    elif name == "float64 gradients":
        assert 0 < difference < 1e-6
    else:
        assert difference > 1e-3


def test_accumulation_works_through_a_batch_in_parts(tmp_path: Path) -> None:
    sizes: list[int] = []
    with trainer(replace(VARIANTS["accumulation"], epochs=1), tmp_path) as made:
        made.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        fit(made)
    assert sizes == [39, 40, 40] * 11 + [0, 0, 1]


def test_a_gradient_that_is_shorter_than_the_norm_is_left_as_it_is(
    alone: Callable[[str], Result], tmp_path: Path
) -> None:
    assert farthest(train(replace(PLAIN, clip_norm=1e6), tmp_path), alone("plain")) < 1e-6


def test_patience_ends_the_training_after_so_many_epochs_without_a_better_one(
    alone: Callable[[str], Result],
) -> None:
    found = alone("patience")
    accuracies = [record["val_accuracy"] for record in found["history"]]
    assert len(accuracies) < VARIANTS["patience"].epochs
    assert found["kept"] == accuracies.index(max(accuracies)) == len(accuracies) - 3
    # An epoch that is worse than the one before it, but not two in a row, ends nothing.
    rising = itertools.pairwise(accuracies[: found["kept"] + 1])
    assert any(later < earlier for earlier, later in rising)
    assert farthest({"evaluated": found["best"]}, found) > 0


def test_what_is_told_every_so_many_steps_is_their_mean_loss(alone: Callable[[str], Result]) -> None:
    found = alone("log every")
    _, expected = plain("log every", found)
    for epoch, (record, wanted) in enumerate(zip(found["history"], expected["history"], strict=True)):
        # The last two steps of an epoch are too few to be told.
        assert [told["step"] - epoch * STEPS_PER_EPOCH for told in record["steps"]] == [5, 10]
        for told, first in zip(record["steps"], (0, 5), strict=True):
            steps = wanted["losses"][first : first + 5]
            mean = sum(loss * number for loss, number in steps) / sum(number for _, number in steps)
            assert told["loss"] == pytest.approx(mean, abs=1e-6)


def test_bf16_learns_and_is_not_float32(alone: Callable[[str], Result], tmp_path: Path) -> None:
    found = alone("bf16")
    exact = train(replace(VARIANTS["bf16"], mixed_precision="no"), tmp_path)
    assert all(tensor.dtype == torch.float32 for tensor in found["weights"].values())
    assert farthest(found, exact) > 1e-3
    for record, wanted in zip(found["history"], exact["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=0.05), key
    assert found["history"][-1]["val_accuracy"] > 0.8


@needs_compiler
def test_a_compiled_model_is_compiled(tmp_path: Path) -> None:
    with trainer(VARIANTS["compiled"], tmp_path) as made:
        assert isinstance(made.engine.model, torch._dynamo.OptimizedModule)
    with trainer(PLAIN, tmp_path) as made:
        assert isinstance(made.engine, CPUEngine)


def test_float64_gradients_are_rounded_once(tmp_path: Path) -> None:
    with trainer(VARIANTS["float64 gradients"], tmp_path) as made:
        double = perceptron().double()
        double.load_state_dict(made.module.state_dict())
        before = copied(made.module.state_dict())
        batch = made.train_set[:119]
        logits = double(normalize(batch.images, made.data.image).double())
        nn.functional.cross_entropy(logits, batch.labels).backward()
        take_step(made, 0, torch.arange(119))
        for name, parameter in double.named_parameters():
            assert parameter.grad is not None
            expected = torch.add(before[name], parameter.grad.float(), alpha=-0.05)
            # One in millions is on the edge between two float32.
            assert (made.module.get_parameter(name) != expected).double().mean() < 1e-4


# Several processes, against one


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), params(run for run in RUNS if run[1] != "bf16"))
def test_any_number_of_processes_trains_the_same(
    number: int,
    name: str,
    alone: Callable[[str], Result],
    together: Callable[[int], dict[str, Result]],
) -> None:
    expected, found = alone(name), together(number)[name]
    assert_close(found["initial"], expected["initial"], atol=0)
    exact = VARIANTS[name].gradient_dtype == "float64"
    for which in ("weights", "evaluated", "best"):
        assert_close(found[which], expected[which], 0 if exact else TOLERANCES.get(name, 1e-5))
    assert found["kept"] == expected["kept"]
    for record, wanted in zip(found["history"], expected["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=1e-5), key
        for key in ("epoch", "learning_rate"):
            assert record[key] == wanted[key]
        assert [told["step"] for told in record["steps"]] == [told["step"] for told in wanted["steps"]]
        for told, other in zip(record["steps"], wanted["steps"], strict=True):
            assert told["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_every_image_is_counted_once(number: int, together: Callable[[int], dict[str, Result]]) -> None:
    for result in together(number).values():
        for record in result["history"]:
            for part, sizes in (("val", (127, 1391)), ("test", (359,)), ("train", (1310, 46))):
                counts = [record[f"{part}_accuracy"] * size for size in sizes]
                assert any(abs(count - round(count)) < 1e-6 for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_bf16_learns_on_several_processes_and_agrees_loosely(
    number: int, alone: Callable[[str], Result], together: Callable[[int], dict[str, Result]]
) -> None:
    # Each process rounds its part of a gradient to eight bits, so that other parts have another sum.
    found, expected = together(number)["bf16"], alone("bf16")
    for name, tensor in expected["weights"].items():
        difference = (found["weights"][name] - tensor).norm()
        assert 0 < difference < 0.2 * (tensor - expected["initial"][name]).norm()
    for record, wanted in zip(found["history"], expected["history"], strict=True):
        for key in LOSSES:
            assert record[key] == pytest.approx(wanted[key], abs=0.05), key
    assert found["history"][-1]["val_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        (True, "bf16"),
        *(pytest.param(False, precision, marks=pytest.mark.gpu) for precision in ("no", "bf16", "fp16")),
    ],
)
def test_in_any_precision_a_training_goes_on_to_the_same_weights(
    cpu: bool, precision: str, tmp_path: Path
) -> None:
    config = replace(VARIANTS["everything"], mixed_precision=precision, checkpoint_every_steps=17)
    with trainer(config, tmp_path, cpu=cpu) as made:
        whole = fit(made)
    checkpoint, _ = load_checkpoint(tmp_path)
    assert checkpoint.progress == f"step {17 - STEPS_PER_EPOCH} of epoch 2"
    with trainer(config, tmp_path, cpu=cpu, checkpoint=checkpoint) as made:
        resumed = fit(made)
    assert farthest(whole, resumed) == 0


@pytest.mark.gpu
def test_fp16_on_a_gpu_learns_and_scales_its_loss(tmp_path: Path) -> None:
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
