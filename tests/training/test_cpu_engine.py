"""Single steps of CPUEngine; test_variants.py compares whole trainings with torch's own parts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_dist.config import TrainConfig
from mlp_dist.training.engines import cpu
from mlp_dist.training.engines.accelerated import AcceleratedEngine
from mlp_dist.training.engines.cpu import CPUEngine
from tests.helpers.variants import PLAIN, copied, take_step, trainer

BATCH = torch.arange(119)


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_sizes": ()},
        {"hidden_sizes": (700,), "weight_decay": 0.1, "ema_decay": 0.9, "augment_shift": 2, "deform": 1.0},
        {"optimizer": "adam", "lr": 1e-3, "dropout": 0.3, "restyle": 1.0, "schedule": "cosine"},
        {"matmul_precision": "highest", "label_smoothing": 0.2, "warmup_epochs": 0.5},
    ],
    ids=str,
)
def test_steps_are_those_of_autograd(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for engine in (CPUEngine, AcceleratedEngine):
        with trainer(replace(PLAIN, **changes), tmp_path) as made:
            assert isinstance(made.engine, engine)
            monkeypatch.setattr(CPUEngine, "supports", lambda *_: False)
            totals = [take_step(made, step, BATCH[: 119 - step]) for step in range(3)]
            results.append((copied(made.state.weights), torch.cat(totals)))
    (weights, totals), (expected, wanted) = results
    # Adam divides by a gradient's size, which magnifies the rounding of gradients near 0.
    atol = 1e-4 if "optimizer" in changes else 1e-6
    for name, tensor in expected.items():
        difference = (weights[name] - tensor).abs()
        assert difference.max() < atol
        assert (difference > 1e-6).double().mean() < 1e-3
    torch.testing.assert_close(totals, wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "tensor"},
        {"optimizer": "scratch-sgd"},
        {"gradient_dtype": "float64"},
        {"mixed_precision": "bf16"},
        {"accumulation_steps": 2},
        {"clip_norm": 1.0},
        {"adversarial": 0.1},
    ],
    ids=str,
)
def test_other_options_use_autograd(changes: dict[str, Any], tmp_path: Path) -> None:
    with trainer(replace(PLAIN, **changes), tmp_path) as made:
        assert isinstance(made.engine, AcceleratedEngine)


def test_an_unknown_option_uses_autograd(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Extended(TrainConfig):
        momentum: float = 0.0

    for momentum, engine in ((0.0, CPUEngine), (0.9, AcceleratedEngine)):
        with trainer(Extended(**vars(PLAIN), momentum=momentum), tmp_path) as made:
            assert isinstance(made.engine, engine)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_needs_no_private_kernel(
    weight_decay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for update in (cpu.AdamUpdate, cpu.OptimizerUpdate):
        with trainer(replace(PLAIN, optimizer="adam", weight_decay=weight_decay), tmp_path) as made:
            assert isinstance(made.engine, CPUEngine)
            assert type(made.engine._update) is update
            for step in range(3):
                take_step(made, step, BATCH)
            found.append(copied(made.state.weights))
        monkeypatch.setattr(cpu, "ADAM_KERNEL", "gone")
        monkeypatch.setattr(cpu, "ADAMW_KERNEL", "gone")
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6)
