"""The moving average of checkpoints that version 0.1.0 wrote; the average itself is torch's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlp_dist.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.variants import PLAIN, take_step, trainer


@pytest.mark.parametrize("num_updates", [0, 3])
def test_reads_the_average_of_0_1_0(num_updates: int, tmp_path: Path) -> None:
    config = replace(PLAIN, ema_decay=0.9)
    with trainer(config, tmp_path) as made:
        for step in range(num_updates):
            take_step(made, step, torch.arange(119))
        checkpoint = made.state.checkpoint("", made.total)
        assert checkpoint.average is not None
        state = dict(checkpoint.average)
        assert state.pop("n_averaged") == num_updates
        average = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        checkpoint.average = {"num_updates": num_updates, "average": average if num_updates else {}}
        save_checkpoint(checkpoint, tmp_path)
        take_step(made, num_updates, torch.arange(119))
        expected = made.state.weights
    with trainer(config, tmp_path, checkpoint=load_checkpoint(tmp_path)[0]) as made:
        take_step(made, num_updates, torch.arange(119))
        found = made.state.weights
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
