"""One of the processes that benchmarks/processes.py measures.

accelerate launch ... --module benchmarks.processes_worker BATCH_SIZE FILE
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from mlp_dist import processes
from mlp_dist.data.readers import default_data_dir, read_dataset
from mlp_dist.joining import join
from mlp_dist.recipes import get_recipe
from mlp_dist.start import settle
from mlp_dist.trainer import Trainer

CALLS = ("all_gather_into_tensor", "all_reduce")


@dataclass
class Epoch:
    """Seconds of one epoch, of its part in torch.distributed's calls, and of one without any of them."""

    whole: float
    talking: float
    alone: float
    bytes_a_step: int


class Calls:
    """Takes the place of torch.distributed's calls and counts their seconds and bytes; while `silent` is set,
    they do nothing."""

    def __init__(self) -> None:
        self.seconds, self.bytes, self.silent = 0.0, 0, False
        for name in CALLS:
            setattr(distributed, name, self._timed(getattr(distributed, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **options: Any) -> Any:
            if self.silent:
                return _Done() if options.get("async_op") else None
            started = time.perf_counter()
            work = call(*given, **options)
            self.seconds += time.perf_counter() - started
            sent = [tensor for tensor in given if isinstance(tensor, torch.Tensor)][-1]
            self.bytes += sent.numel() * sent.element_size()
            return work if work is None else _Waiting(work, self)

        return timed


class _Done:
    def wait(self) -> None:
        pass


class _Waiting:
    def __init__(self, work: Any, calls: Calls) -> None:
        self.work, self.calls = work, calls

    def wait(self) -> None:
        started = time.perf_counter()
        self.work.wait()
        self.calls.seconds += time.perf_counter() - started


def train(batch_size: int, output: Path) -> None:
    """A warm-up epoch, one as it is, and one in which nobody talks; main writes an Epoch as JSON."""
    join(use_cpu=True)
    processes.set_threads()
    accelerator, calls = Accelerator(cpu=True), Calls()
    data = read_dataset("mnist", default_data_dir())
    config, data = settle(replace(get_recipe("mnist"), batch_size=batch_size, epochs=9), data)
    with tempfile.TemporaryDirectory() as directory, processes.StopSignals() as signals:
        trainer = Trainer(config, data, accelerator, Path(directory))

        def epoch() -> float:
            calls.seconds, calls.bytes = 0.0, 0
            record = trainer.train_epoch(signals)
            trainer.keep(record | {"val_accuracy": None})
            return float(record["train_seconds"])

        epoch()
        whole = epoch()
        talking, sent = calls.seconds, calls.bytes
        calls.silent = True
        alone = epoch()
    if accelerator.is_main_process:
        found = Epoch(whole, talking, alone, sent // trainer.steps_per_epoch)
        output.write_text(json.dumps(asdict(found)))
    calls.silent = False
    accelerator.end_training()


def main() -> None:
    processes.end_with_launcher()
    train(int(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
