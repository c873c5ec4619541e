import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mlp_dist.core.model import build_model
from mlp_dist.core.spec import KINDS, ModelSpec
from mlp_dist.data.batches import DROPOUT, generator
from mlp_dist.training.dropout import Dropout

SIZES = (6, 50, 40, 3)
WHOLE = slice(None)


def built(kind: str, sizes: tuple[int, ...] = SIZES) -> nn.Module:
    return build_model(ModelSpec(sizes, kind), generator=torch.Generator().manual_seed(0))


def rows(number: int = 12) -> torch.Tensor:
    return torch.randn(number, SIZES[0], generator=torch.Generator().manual_seed(1))


def keeps(p: float, step: int, layer: int, batch_size: int, seed: int = 5) -> torch.Tensor:
    """What each row keeps of a hidden layer."""
    width = SIZES[layer + 1]
    return torch.rand(batch_size, width, generator=generator(seed, DROPOUT, step, layer)) >= p


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_hidden_values_are_left_out_and_scaled_as_torch_does(kind: str, p: float) -> None:
    model, inputs = built(kind), rows()
    weights = [weight.detach().clone() for weight in built("module").parameters()]
    dropout = Dropout(model, p, seed=5)
    dropout.at(3, batch_size=12, positions=WHOLE)
    values = inputs
    for layer in range(2):
        values = functional.linear(values, weights[2 * layer], weights[2 * layer + 1]).relu()
        values = values * keeps(p, 3, layer, 12) / (1 - p)
    expected = functional.linear(values, weights[4], weights[5])
    if kind == "tensor":
        # Its weights are drawn in another shape, so they are other numbers.
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight.T if weight.dim() == 2 else weight)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_share_left_out_and_the_scale_are_torch_s(p: float) -> None:
    expected = functional.dropout(torch.ones(2000, 500), p)
    model = nn.Sequential(nn.Linear(1, 500), nn.ReLU(), nn.Linear(500, 1))
    Dropout(model, p, seed=0).at(0, batch_size=2000, positions=WHOLE)
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[0].bias)
    found = model[:2](torch.ones(2000, 1))
    assert found.unique().tolist() == pytest.approx(expected.unique().tolist())
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert (found == 0).float().mean(0).sub(p).abs().max() < 0.06


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_what_is_left_out_of_a_row_does_not_depend_on_the_number_of_processes(kind: str, world: int) -> None:
    inputs = rows()
    model = built(kind)
    dropout = Dropout(model, 0.5, seed=5)
    dropout.at(3, batch_size=12, positions=WHOLE)
    whole = model(inputs)
    for rank in range(world):
        other = built(kind)
        process = Dropout(other, 0.5, seed=5)
        for positions in (slice(rank, 12, world), torch.arange(12)[rank::world]):
            process.at(3, batch_size=12, positions=positions)
            torch.testing.assert_close(other(inputs[positions]), whole[positions], rtol=1e-5, atol=1e-6)


def test_seeds_steps_layers_and_rows_differ_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    masks = {}
    for seed, step in itertools.product((0, 1), (0, 1, 2)):
        model = built("module", (6, 50, 50, 3))
        Dropout(model, 0.5, seed=seed).at(step, batch_size=40, positions=WHOLE)
        for layer, module in enumerate((model[1], model[3])):
            masks[seed, step, layer] = module[1].mask
    for one, other in itertools.combinations(masks.values(), 2):
        assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.06)
    for mask in masks.values():
        assert len(mask.unique(dim=0)) == 40
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_in_evaluation_the_model_is_what_it_was(kind: str) -> None:
    plain, model = built(kind), built(kind)
    Dropout(model, 0.5, seed=0).at(0, batch_size=12, positions=WHOLE)
    assert torch.equal(model.eval()(rows()), plain(rows()))
    assert not torch.allclose(model.train()(rows()), plain(rows()))
    assert torch.equal(model.eval()(rows(5)), plain(rows(5)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_stays_as_it_was(kind: str) -> None:
    plain, model = built(kind), built(kind)
    Dropout(model, 0.5, seed=0).at(0, batch_size=12, positions=WHOLE)
    expected = plain.state_dict()
    found = model.state_dict()
    assert list(found) == list(expected)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    model.load_state_dict(expected, strict=True)
    plain.load_state_dict(found, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_left_out_the_model_is_not_changed(kind: str) -> None:
    plain, model = built(kind), built(kind)
    Dropout(model, 0.0, seed=0).at(0, batch_size=12, positions=WHOLE)
    assert repr(model) == repr(plain)
    assert torch.equal(model(rows()), plain(rows()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_hidden_layers_there_is_nothing_to_leave_out(kind: str) -> None:
    plain, model = built(kind, (6, 3)), built(kind, (6, 3))
    Dropout(model, 0.5, seed=0).at(0, batch_size=12, positions=WHOLE)
    assert torch.equal(model(rows()), plain(rows()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_share_goes_through(kind: str) -> None:
    model = built(kind)
    Dropout(model, 0.5, seed=0).at(0, batch_size=3, positions=slice(5, 3, 8))
    assert model(rows(0)).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_told_of_no_step_says_so(kind: str) -> None:
    model = built(kind)
    Dropout(model, 0.5, seed=0)
    with pytest.raises(RuntimeError, match=r"Dropout\.at must be called"):
        model(rows())


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_the_outputs_have_the_dtype_that_they_have_without_dropout(kind: str) -> None:
    plain, model = built(kind), built(kind)
    Dropout(model, 0.5, seed=0).at(0, batch_size=12, positions=WHOLE)
    exact = model(rows())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(rows())
        assert found.dtype == plain(rows()).dtype
        assert torch.equal(model.eval()(rows()), plain(rows()))
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_once_it_follows_the_steps(kind: str) -> None:
    compilations = []

    def count(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compilations.append(len(example_inputs))
        return graph

    model = built(kind)
    dropout = Dropout(model, 0.5, seed=0)
    compiled = torch.compile(model, backend=count, dynamic=False, fullgraph=True)
    for step in range(5):
        dropout.at(step, batch_size=12, positions=slice(0, 12, 2))
        assert torch.equal(compiled(rows(6)), model(rows(6)))
    assert len(compilations) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_trains_it(kind: str) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = built(kind)
        dropout = Dropout(model, 0.5, seed=0)
        wrapped = DistributedDataParallel(model)
        dropout.at(0, batch_size=12, positions=WHOLE)
        wrapped(rows()).sum().backward()
        found = [parameter.grad for parameter in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()
    other = built(kind)
    Dropout(other, 0.5, seed=0).at(0, batch_size=12, positions=WHOLE)
    other(rows()).sum().backward()
    for gradient, parameter in zip(found, other.parameters(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_processes_agree(kind: str) -> None:
    model = built(kind).cuda()
    dropout = Dropout(model, 0.5, seed=0)
    inputs = rows().cuda()
    dropout.at(0, batch_size=12, positions=WHOLE)
    whole = model(inputs)
    dropout.at(0, batch_size=12, positions=slice(1, 12, 3))
    torch.testing.assert_close(model(inputs[1::3]), whole[1::3], rtol=1e-4, atol=1e-5)
