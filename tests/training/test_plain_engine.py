"""The written-out steps; tests/test_variants.py compares whole trainings with torch's own parts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.config import TrainConfig
from mlp_dist.training.engines.accelerated import EagerEngine
from mlp_dist.training.engines.cpu import PlainEngine, rows_at_once
from mlp_dist.training.engines.products import Products
from mlp_dist.training.trainer import Trainer
from tests.helpers.variants import EVERYTHING, PLAIN, copied, take_step, trainer

BATCH = torch.arange(119)


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


def by_autograd(made: Trainer) -> None:
    assert isinstance(made.engine, PlainEngine)
    made.engine = EagerEngine(made.engine.job)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_sizes": ()},
        {"hidden_sizes": (700,)},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.2},
        {"ema_decay": 0.9},
        {"schedule": "cosine", "warmup_epochs": 0.5},
        {"optimizer": "adam", "lr": 1e-3},
        {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.5},
        {"matmul_precision": "highest"},
    ],
    ids=str,
)
def test_a_step_is_autograd_s(changes: dict[str, Any], tmp_path: Path) -> None:
    results = []
    for engine in (None, by_autograd):
        with trainer(replace(PLAIN, **changes), tmp_path) as made:
            if engine:
                engine(made)
            totals = [take_step(made, step, BATCH[: 119 - step]) for step in range(3)]
            results.append((copied(made.weights()), torch.cat(totals)))
    (weights, totals), (expected, wanted) = results
    # Adam divides by a gradient's size: the last bits of one that is all but zero become a part of the step.
    atol = 1e-4 if "optimizer" in changes else 1e-6
    for name, tensor in expected.items():
        difference = (weights[name] - tensor).abs()
        assert difference.max() < atol
        assert (difference > 1e-6).double().mean() < 1e-3
    torch.testing.assert_close(totals, wanted, rtol=1e-6, atol=1e-4)


def test_several_steps_in_a_call_are_the_same_steps(tmp_path: Path) -> None:
    batches = list(torch.arange(300).split(119))
    found = []
    for together in (True, False):
        with trainer(replace(PLAIN, optimizer="adam"), tmp_path) as made:
            if together:
                images = made.train_set[made.engine.rows(batches)]
                totals = made.engine.train(0, [len(batch) for batch in batches], images)
            else:
                totals = torch.cat([take_step(made, step, batch) for step, batch in enumerate(batches)])
            state = made.torch_optimizer.state_dict()["state"]
            found.append((copied(made.module.state_dict()), totals, [state[n]["step"] for n in state]))
    (weights, totals, steps), (expected, wanted, expected_steps) = found
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert torch.equal(totals, wanted)
    assert steps == expected_steps == [3] * 6


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "tensor"},
        {"model": "layers"},
        {"optimizer": "scratch-sgd"},
        {"gradient_dtype": "float64"},
        {"mixed_precision": "bf16"},
        {"accumulation_steps": 2},
        {"clip_norm": 1.0},
        {"dropout": 0.1},
        {"augment_shift": 1},
        {"deform": 0.5},
        {"adversarial": 0.1},
    ],
    ids=str,
)
def test_what_is_not_plain_goes_by_autograd(changes: dict[str, Any], tmp_path: Path) -> None:
    with trainer(replace(PLAIN, **changes), tmp_path) as made:
        assert isinstance(made.engine, EagerEngine)


def test_steps_at_once_need_bounded_memory(tmp_path: Path) -> None:
    for batch_size, steps in ((1, 5349), (100, 53), (10_000, 1)):
        with trainer(replace(PLAIN, batch_size=batch_size), tmp_path) as made:
            assert made.engine.steps_at_once == steps
    assert 4 * 224 * 224 * 3 * rows_at_once(224 * 224 * 3) <= 2**24 < 4 * 784 * rows_at_once(784) * 2


def test_small_products_are_made_by_one_thread_in_full_precision() -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Products("medium") as products:
            products.use(True)
            assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("medium", 2)
            products.use(False)
            assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("highest", 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before[1])
    assert not Products.is_large(100, 500, 10)
    assert Products.is_large(100, 784, 500)


def test_an_interrupted_adam_goes_on_from_its_state(tmp_path: Path) -> None:
    config: TrainConfig = replace(PLAIN, optimizer="adam")
    with trainer(config, tmp_path) as whole:
        for step in range(4):
            take_step(whole, step, BATCH)
        expected = copied(whole.module.state_dict())
    with trainer(config, tmp_path) as first:
        for step in range(2):
            take_step(first, step, BATCH)
        model, optimizer = copied(first.module.state_dict()), first.torch_optimizer.state_dict()
    with trainer(config, tmp_path) as second:
        second.module.load_state_dict(model)
        second.torch_optimizer.load_state_dict(optimizer)
        second.engine = PlainEngine(second.engine.job)  # type: ignore[attr-defined]
        for step in range(2, 4):
            take_step(second, step, BATCH)
        found = second.module.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_everything_is_not_plain(tmp_path: Path) -> None:
    with trainer(EVERYTHING, tmp_path) as made:
        assert isinstance(made.engine, EagerEngine)
