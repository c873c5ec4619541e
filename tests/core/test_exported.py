"""Modules of one's own are kept as graphs, without their classes and without pickles."""

import base64
import io
import os
import pickle
import zipfile
import zlib

import pytest
import torch
from torch import nn

from mlp_dist.core.errors import BundleError, UsageError
from mlp_dist.core.model import export, load_exported


class Own(nn.Module):
    """Layers that a perceptron lacks, a shared parameter, and buffers that are saved or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.Dropout(0.5)
        self.last, self.convolution = nn.Linear(32, 10), nn.Conv2d(1, 10, 3)
        self.again = self.first.weight
        self.register_buffer("offset", torch.arange(10.0), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        sides = self.convolution(inputs.view(-1, 1, 8, 8)).mean(dim=(2, 3))
        return self.last(self.drop(torch.tanh(self.norm(self.first(inputs))))) + sides + self.offset


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) if inputs.sum() > 0 else -self.layer(inputs)


def test_answers_are_the_modules_for_any_batch_size() -> None:
    module = Own()
    program = export(module, 64, 10)
    assert module.training
    for _ in range(3):
        module(torch.randn(20, 64))
    kept = load_exported(program)
    kept.load_state_dict(module.eval().state_dict())
    assert list(kept.state_dict()) == list(module.state_dict())
    for size in (1, 2, 16, 33):
        inputs = torch.randn(size, 64)
        assert torch.equal(kept(inputs), module(inputs))
    # The weights stand in the state_dict alone.
    assert len(export(nn.Linear(64, 100_000), 64, 100_000)) < 100_000


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Branching(), "data-dependent"), (nn.Linear(64, 9), r"into \(3, 9\)"), (nn.Linear(65, 10), "64")],
)
def test_what_cannot_be_kept_is_refused(
    module: nn.Module, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=reason):
        export(module, 64, 10)
    assert capfd.readouterr() == ("", "")


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.abort, ()


@pytest.mark.parametrize("name", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "extra/note"])
def test_files_with_pickles_are_refused(name: str) -> None:
    program, changed = zlib.decompress(base64.b64decode(export(nn.Linear(64, 10), 64, 10))), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as old, zipfile.ZipFile(changed, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for entry in old.namelist():
            if entry != f"{root}/{name}":
                new.writestr(entry, old.read(entry))
        new.writestr(f"{root}/{name}", pickle.dumps(Harmful()))
    with pytest.raises(BundleError):
        load_exported(base64.b64encode(zlib.compress(changed.getvalue())).decode())
    with pytest.raises(BundleError, match="cannot be read"):
        load_exported("program")
