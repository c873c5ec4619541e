"""The steps that a CUDA graph holds; without a GPU, a recording of the CPU's operations stands in for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from variants import PLAIN, copied, fit, trainer

from mlp_dist.checkpoint import load_checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.engines import build_engine
from mlp_dist.engines.eager import EagerEngine
from mlp_dist.engines.graph import CudaGraphs, GraphEngine
from mlp_dist.trainer import Trainer

CAPTURED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "no hidden layer": {"hidden_sizes": ()},
    "weight decay": {"weight_decay": 0.1},
    "adam": {"optimizer": "adam", "lr": 3e-4},
    "adamw": {"optimizer": "adam", "lr": 3e-4, "weight_decay": 0.5},
    "label smoothing": {"label_smoothing": 0.2},
    "schedule": {"schedule": "cosine", "warmup_epochs": 0.5},
    "average": {"ema_decay": 0.9},
    "augmentation": {"augment_shift": 2},
    "deformation": {"deform": 0.5},
    "tensor": {"model": "tensor"},
    "layers": {"model": "layers", "optimizer": "adam", "lr": 3e-4},
}


class Recording(TorchDispatchMode):
    """As a CUDA graph: operations that are done again on the same memory, whatever Python then says."""

    WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh")
    """What reads a number from the device or sends one there: it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in self.WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for tensor in self._written(func, args, kwargs):
            self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        result = func(*args, **kwargs)
        memory = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        made = [each for each in _tensors(result) if each.untyped_storage().data_ptr() not in memory]
        if made or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, made))
        return result

    def _written(self, func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors(args[number] if number < len(args) else kwargs.get(argument.name))

    def undo(self) -> None:
        for tensor, before in self.before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            for tensor, again in zip(made, _tensors(func(*args, **kwargs)), strict=False):
                tensor.copy_(again)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Recordings:
    """In the place of CudaGraphs."""

    def __init__(self) -> None:
        self.number, self.replays = 0, 0

    def run(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        recording = Recording()
        with recording:
            work()
        with torch.no_grad():
            recording.undo()
        self.number += 1

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay


class Unable(Recordings):
    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        super().record(work)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def epochs(made: Trainer, number: int = 3) -> dict[str, Any]:
    """What three epochs of five full batches and a shorter one come to, in calls of two steps at most."""
    batch_size, totals = made.config.batch_size, []
    batches = list(torch.arange(5 * batch_size + 17, device=made.device).split(batch_size))
    for epoch in range(number):
        for start in range(0, len(batches), 2):
            some = batches[start : start + 2]
            images = made.train_set[made.engine.rows(some)]
            totals.append(
                made.engine.train(epoch * len(batches) + start, [len(batch) for batch in some], images)
            )
    states = made.torch_optimizer.state_dict()["state"].values()
    return {
        "weights": copied(made.module.state_dict()),
        "evaluated": copied(made.weights()),
        "totals": torch.cat(totals),
        "steps": [int(state["step"]) for state in states if "step" in state],
        "updates": made.average.num_updates if made.average else None,
    }


def by_graph(config: TrainConfig, directory: Path, recorder: Recordings) -> dict[str, Any]:
    with trainer(config, directory) as made:
        # On a CPU the trainer's own engine has wrapped the model for bf16.
        made.accelerator.unwrap_model(made.module, keep_fp32_wrapper=False)
        made.engine = GraphEngine(made.engine.job, recorder)  # type: ignore[attr-defined]
        return epochs(made)


def by_autograd(config: TrainConfig, directory: Path, *, cpu: bool = True) -> dict[str, Any]:
    with trainer(config, directory, cpu=cpu) as made:
        made.engine = EagerEngine(made.engine.job)  # type: ignore[attr-defined]
        return epochs(made)


def compare(found: dict[str, Any], expected: dict[str, Any], atol: float = 1e-5) -> None:
    for kind in ("weights", "evaluated"):
        for name, tensor in expected[kind].items():
            difference = (found[kind][name] - tensor).abs()
            # Adam divides by a gradient's size: the last bits of one that is all but zero become a part of
            # the step.
            assert difference.max() <= 10 * atol
            assert (difference > atol).double().mean() < 1e-3
    torch.testing.assert_close(found["totals"], expected["totals"], rtol=100 * atol, atol=100 * atol)
    assert found["steps"] == expected["steps"]
    assert found["updates"] == expected["updates"]


@pytest.mark.parametrize("name", CAPTURED)
def test_recorded_steps_are_autograd_s(name: str, tmp_path: Path) -> None:
    config, recordings = replace(PLAIN, **CAPTURED[name]), Recordings()
    compare(by_graph(config, tmp_path, recordings), by_autograd(config, tmp_path))
    # Two full batches, and a full and a shorter one: each is recorded when it first comes.
    assert (recordings.number, recordings.replays) == (2, 7)


def test_recorded_steps_in_bf16_are_autograd_s(tmp_path: Path) -> None:
    config = replace(PLAIN, mixed_precision="bf16")
    found = by_graph(config, tmp_path, Recordings())
    compare(found, by_autograd(config, tmp_path))


@pytest.mark.parametrize("name", ["sgd", "adam", "average", "layers"])
def test_where_recording_fails_the_same_steps_go_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(PLAIN, **CAPTURED[name])
    found, expected = by_graph(config, tmp_path, Unable()), by_graph(config, tmp_path, Recordings())
    compare(found, expected, atol=0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cannot be captured: operation not permitted when stream is capturing")


def test_as_many_steps_as_pay_in_one_call(tmp_path: Path) -> None:
    for batch_size, steps in ((1, 32), (5000, 2), (20_000, 1)):
        with trainer(replace(PLAIN, batch_size=batch_size), tmp_path) as made:
            assert GraphEngine(made.engine.job, Recordings()).steps_at_once == steps  # type: ignore[attr-defined]


@contextmanager
def takes(config: TrainConfig, directory: Path, **hardware: Any) -> Iterator[bool]:
    with trainer(config, directory) as made:
        gpu = {"device": torch.device("cuda", 0), "process_index": 0, "num_processes": 1} | hardware
        job = replace(made.engine.job, accelerator=SimpleNamespace(**gpu))  # type: ignore[attr-defined]
        yield GraphEngine.takes(job)


@pytest.mark.parametrize("name", [*CAPTURED, "bf16"])
def test_one_gpu_takes_graphs(name: str, tmp_path: Path) -> None:
    changes = CAPTURED.get(name, {"mixed_precision": "bf16"})
    with takes(replace(PLAIN, **changes), tmp_path) as taken:
        assert taken


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "scratch-sgd"},
        {"gradient_dtype": "float64"},
        {"accumulation_steps": 2},
        {"clip_norm": 1.0},
        {"dropout": 0.1},
        {"adversarial": 0.1},
        {"compile": True},
    ],
    ids=str,
)
def test_what_a_graph_cannot_hold_goes_by_autograd(changes: dict[str, Any], tmp_path: Path) -> None:
    with takes(replace(PLAIN, **changes), tmp_path) as taken:
        assert not taken


@pytest.mark.parametrize("hardware", [{"device": torch.device("cpu")}, {"num_processes": 2}], ids=str)
def test_several_processes_and_cpus_have_no_graphs(hardware: dict[str, Any], tmp_path: Path) -> None:
    with takes(PLAIN, tmp_path, **hardware) as taken:
        assert not taken


@pytest.mark.gpu
@pytest.mark.parametrize("name", CAPTURED)
def test_on_a_gpu_replayed_steps_are_autograd_s(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(PLAIN, **CAPTURED[name])
    with trainer(config, tmp_path, cpu=False) as made:
        assert isinstance(made.engine, GraphEngine)
        found = epochs(made)
    assert capsys.readouterr().err == ""
    compare(found, by_autograd(config, tmp_path, cpu=False))


@pytest.mark.gpu
def test_on_a_gpu_in_bf16(tmp_path: Path) -> None:
    config = replace(PLAIN, mixed_precision="bf16")
    with trainer(config, tmp_path, cpu=False) as made:
        assert isinstance(made.engine, GraphEngine)
        found = epochs(made)
    compare(found, by_autograd(config, tmp_path, cpu=False), atol=5e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adam", "average"])
def test_on_a_gpu_a_capture_that_fails_leaves_no_trace(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, record = replace(PLAIN, **CAPTURED[name]), CudaGraphs.record

    def wait_in_it(self: CudaGraphs, work: Callable[[], None]) -> Callable[[], None]:
        return record(self, lambda: (work(), torch.cuda.synchronize())[0])

    found = []
    for broken in (True, False):
        monkeypatch.setattr(CudaGraphs, "record", wait_in_it if broken else record)
        with trainer(config, tmp_path, cpu=False) as made:
            found.append(epochs(made))
            assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert ("cannot be captured" in capsys.readouterr().err) is broken
    compare(*found, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd", "adamw", "average", "schedule"])
def test_on_a_gpu_a_training_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    config = replace(PLAIN, **CAPTURED[name], batch_size=64, checkpoint_every_steps=27)
    with trainer(config, tmp_path, cpu=False) as made:
        whole = fit(made)
    checkpoint, _ = load_checkpoint(tmp_path)
    assert checkpoint.has_begun
    with trainer(config, tmp_path, cpu=False, checkpoint=checkpoint) as made:
        assert build_engine(made.engine.job).steps_at_once == 32  # type: ignore[attr-defined]
        resumed = fit(made)
    for key in ("weights", "evaluated"):
        assert all(torch.equal(resumed[key][name], whole[key][name]) for name in whole[key])
