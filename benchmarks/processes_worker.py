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
from typing import Any, cast

import torch
from accelerate import Accelerator

from mlp_dist.console import processes
from mlp_dist.data.datasets import default_data_dir, read_dataset
from mlp_dist.recipes import get_recipe
from mlp_dist.training.distributed.rendezvous import join
from mlp_dist.training.engines.exchange import Exchange
from mlp_dist.training.start import settle
from mlp_dist.training.trainer import Trainer


@dataclass
class Epoch:
    """Seconds of one epoch, of its part in the engine's exchange, and of one without it."""

    whole: float
    talking: float
    alone: float
    bytes_a_step: int


class Timed:
    """In place of an engine's exchange: counts its seconds and bytes, and while `silent` does nothing."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.flat = exchange, exchange.flat
        self.seconds, self.bytes, self.silent = 0.0, 0, False
        self._last: Any = None

    def gather(self) -> tuple[int, list[torch.Tensor]]:
        self._last = self._timed(self.exchange.gather, self.flat)
        found: tuple[int, list[torch.Tensor]] = self._last
        return found

    def start(self, part: slice) -> None:
        self._timed(lambda: self.exchange.start(part), self.flat[part])

    def finish(self) -> None:
        self._timed(self.exchange.finish)

    def _timed(self, call: Callable[[], Any], sent: torch.Tensor | None = None) -> Any:
        if self.silent:
            return self._last
        started = time.perf_counter()
        answer = call()
        self.seconds += time.perf_counter() - started
        self.bytes += 0 if sent is None else sent.numel() * sent.element_size()
        return answer


def timed(engine: Any) -> Timed | None:
    """In place of the engine's exchange; None where it has none."""
    for part in (engine._rows, engine._update):
        if getattr(part, "exchange", None) is not None:
            part.exchange = Timed(part.exchange)
            return cast(Timed, part.exchange)
    return None


def train(batch_size: int, output: Path) -> None:
    """A warm-up epoch, one as it is, and one in which nobody talks; main writes an Epoch as JSON."""
    join(use_cpu=True)
    processes.set_threads()
    accelerator = Accelerator(cpu=True)
    data = read_dataset("mnist", default_data_dir())
    config, data = settle(replace(get_recipe("mnist"), batch_size=batch_size, epochs=9), data)
    with tempfile.TemporaryDirectory() as directory, processes.StopSignals() as signals:
        trainer = Trainer(config, data, accelerator, Path(directory))
        calls = timed(trainer.engine)

        def epoch() -> float:
            if calls is not None:
                calls.seconds, calls.bytes = 0.0, 0
            record = trainer.train_epoch(signals)
            trainer.keep(record | {"val_accuracy": None})
            return float(record["train_seconds"])

        epoch()
        whole = epoch()
        talking, sent, alone = 0.0, 0, whole
        if calls is not None:
            talking, sent, calls.silent = calls.seconds, calls.bytes, True
            alone = epoch()
    if accelerator.is_main_process:
        found = Epoch(whole, talking, alone, sent // trainer.steps_per_epoch)
        output.write_text(json.dumps(asdict(found)))
    accelerator.end_training()


def main() -> None:
    processes.end_with_launcher()
    train(int(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
