import pytest
import torch
from torch import nn

from mlp_dist.core.errors import UsageError
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.training.engines.accelerated import Dropout

SIZES = (6, 50, 40, 3)
WHOLE = slice(None)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, sizes: tuple[int, ...] = SIZES) -> nn.Module:
    return build_model(ModelSpec(sizes, kind), generator=torch.Generator().manual_seed(0))


def rows(number: int = 12) -> torch.Tensor:
    return torch.randn(number, SIZES[0], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("device", "world"), [("cpu", 2), ("cpu", 8), pytest.param("cuda", 3, marks=pytest.mark.gpu)]
)
def test_dropped_units_are_independent_of_the_number_of_processes(kind: str, device: str, world: int) -> None:
    model, inputs = built(kind).to(device), rows().to(device)
    dropout = Dropout(model, 0.5, num_features=SIZES[0], seed=5)
    dropout.at(3, batch_size=12, positions=WHOLE)
    whole = model(inputs)
    for rank in range(world):
        for positions in (slice(rank, 12, world), torch.arange(12, device=device)[rank::world]):
            dropout.at(3, batch_size=12, positions=positions)
            torch.testing.assert_close(model(inputs[positions]), whole[positions], rtol=1e-4, atol=1e-5)
    dropout.at(3, batch_size=3, positions=slice(5, 3, 8))
    assert model(inputs[:0]).shape == (0, 3)


def test_eval_mode_and_state_dict_are_unchanged(kind: str) -> None:
    plain, model = built(kind), built(kind)
    Dropout(model, 0.5, num_features=SIZES[0], seed=0).at(0, batch_size=12, positions=WHOLE)
    assert torch.equal(model.eval()(rows(5)), plain(rows(5)))
    assert not torch.allclose(model.train()(rows()), plain(rows()))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=True)


def test_compiled_models_use_the_masks_of_each_step(kind: str) -> None:
    compilations = []

    def count(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compilations.append(len(example_inputs))
        return graph

    model = built(kind)
    dropout = Dropout(model, 0.5, num_features=SIZES[0], seed=0)
    compiled = torch.compile(model, backend=count, dynamic=False, fullgraph=True)
    for step in range(5):
        dropout.at(step, batch_size=12, positions=slice(0, 12, 2))
        assert torch.equal(compiled(rows(6)), model(rows(6)))
    assert len(compilations) == 1


def test_models_need_a_module_for_each_activation(kind: str) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layers[1](self.layers[0](inputs).tanh())

    shared = nn.ReLU()
    twice = nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 3))
    for model in (Functional(), twice):
        with pytest.raises(UsageError, match="dropout needs a module of its own for each activation"):
            Dropout(model, 0.5, num_features=6, seed=0)
