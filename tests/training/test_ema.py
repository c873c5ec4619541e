import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import KINDS, ModelSpec
from mlp_dist.training.ema import MovingAverage


def built(kind: str = "module", seed: int = 0) -> nn.Module:
    return build_model(ModelSpec((6, 5, 3), kind), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def change(module: nn.Module, step: int) -> None:
    for parameter in module.parameters():
        parameter.add_(torch.sin(parameter * (step + 2)))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_it_is_torch_s(kind: str, decay: float) -> None:
    module = built(kind)
    average = MovingAverage(module, decay)
    expected = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for step in range(20):
        change(module, step)
        average.update()
        expected.update_parameters(module)
        assert same(average.averaged(), expected.module.state_dict())


def test_the_first_update_copies_and_the_next_ones_mix() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = MovingAverage(module, 0.75)
    found = []
    for value in (4.0, 8.0, 0.0):
        nn.init.constant_(module.weight, value)
        average.update()
        found.append(average.averaged()["weight"].item())
    assert found == [4.0, 5.0, 3.75]


def test_before_an_update_it_is_the_module() -> None:
    module = built()
    assert same(MovingAverage(module, 0.9).averaged(), module.state_dict())


def test_the_average_fits_another_module() -> None:
    module, other = built(), built(seed=1)
    average = MovingAverage(module, 0.9)
    average.update()
    other.load_state_dict(average.averaged(), strict=True)
    assert same(other.state_dict(), module.state_dict())
    assert not any(tensor.requires_grad for tensor in average.averaged().values())


@pytest.mark.parametrize("before", [0, 1, 7])
def test_resumed_it_goes_on_bit_for_bit(before: int) -> None:
    module, resumed = built(), built(seed=1)
    average = MovingAverage(module, 0.9)
    for step in range(before):
        change(module, step)
        average.update()
    file = io.BytesIO()
    torch.save({"weights": module.state_dict(), "average": average.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["weights"])
    other = MovingAverage(resumed, 0.9)
    other.load_state_dict(state["average"])
    for step in range(3):
        for one, its_average in ((module, average), (resumed, other)):
            change(one, step)
            its_average.update()
    assert same(other.averaged(), average.averaged())
    assert other.num_updates == average.num_updates == before + 3


def test_a_state_is_a_copy() -> None:
    module = built()
    average = MovingAverage(module, 0.5)
    average.update()
    state = average.state_dict()
    other = MovingAverage(module, 0.5)
    other.load_state_dict(state)
    before = state["average"]["0.weight"].clone()
    change(module, 0)
    average.update()
    other.update()
    assert torch.equal(state["average"]["0.weight"], before)


def test_another_model_s_average_is_refused() -> None:
    average = MovingAverage(built(), 0.5)
    average.update()
    for other in (built("tensor"), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))):
        with pytest.raises(ValueError, match=r"the average is of \['0.bias', .* not of the model's \['"):
            MovingAverage(other, 0.5).load_state_dict(average.state_dict())
