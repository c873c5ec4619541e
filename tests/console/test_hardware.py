import os
from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from mlp_dist.console import hardware
from mlp_dist.core.errors import UsageError


@pytest.fixture(autouse=True)
def bare_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
            os.environ.pop(name, None)
        yield


def test_cpu_is_used_if_chosen_or_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not hardware.use_cpu()
    os.environ["LOCAL_WORLD_SIZE"] = "4"
    with pytest.raises(UsageError, match="4 processes on this machine, but it has 1 GPU; start 1 with"):
        hardware.use_cpu()
    os.environ["ACCELERATE_USE_CPU"] = "True"
    assert hardware.use_cpu()
    del os.environ["ACCELERATE_USE_CPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.use_cpu()
