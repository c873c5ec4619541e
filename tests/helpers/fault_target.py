"""launch/train.py, with one of its processes killed at a chosen moment; `tests.helpers.faults` starts it.

$FAULT is a Fault as JSON, or {} for no kill. It patches functions of the main process.
"""

import functools
import json
import os
import runpy
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PHASES = {
    "opening": "mlp_dist.training.trainer:Trainer.fit",
    "training": "mlp_dist.training.trainer:Trainer.train_epoch",
    "saving": "mlp_dist.training.trainer:save_checkpoint",
    "evaluating": "mlp_dist.training.trainer:Trainer.evaluate",
    "reporting": "mlp_dist.training.report:Report.epoch",
    "finishing": "mlp_dist.training.report:write_outputs",
}
"""Phase -> the function that marks it; "starting" begins here."""

STRUCK = "struck"


class Killer:
    """Kills the fault's victim at the n-th call of `hit`, after its delay."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault, self.left = fault, fault["nth"]
        self.directory = Path(fault["directory"])
        self.launcher = os.getppid()
        self.pipe = self._wait_outside()

    def hit(self) -> None:
        self.left -= 1
        if self.left == 0 and self.fault["delay"]:
            os.write(self.pipe, b".")
        elif self.left == 0:
            self._strike()

    def _wait_outside(self) -> int:
        """A second process waits and kills, independent of this interpreter's lock."""
        read, write = os.pipe()
        if os.fork():
            os.close(read)
            return write
        os.close(write)
        os.setsid()
        if os.read(read, 1):
            time.sleep(self.fault["delay"])
            self._strike()
        os._exit(0)

    def _strike(self) -> None:
        victim = self.fault["victim"]
        pid = self.launcher if victim == "launcher" else self._pid(victim)
        (self.directory / STRUCK).write_text(str(pid))
        os.kill(pid, self.fault["signum"])

    def _pid(self, rank: str) -> int:
        file = self.directory / f"{rank}.pid"
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        return int(file.read_text())


def around(where: str, enter: Callable[[], None], leave: Callable[[], None] = lambda: None) -> None:
    """Call `enter` before and `leave` after each call of the function "module:name"."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        enter()
        try:
            return original(*args, **kwargs)
        finally:
            leave()

    setattr(owner, name, patched)


def arm(killer: Killer, when: str, moment: str) -> None:
    """Count the calls of `moment` within the phase; "": the calls of the phase's own function."""
    if when == "starting":
        killer.hit()
        return
    if not moment:
        around(PHASES[when], killer.hit)
        return
    inside = []
    # Finishing includes all that follows: closing the run, and the end of the process.
    leave = (lambda: None) if when == "finishing" else inside.pop
    around(PHASES[when], lambda: inside.append(when), leave)
    around(moment, lambda: killer.hit() if inside else None)


def main() -> None:
    fault = json.loads(os.environ["FAULT"])
    rank = os.environ.get("RANK", "0")
    if fault:
        (Path(fault["directory"]) / f"rank {rank}.pid").write_text(str(os.getpid()))
    if fault and rank == "0":
        arm(Killer(fault), fault["when"], fault["moment"])
    runpy.run_path(str(Path(__file__).parents[2] / "launch/train.py"), run_name="__main__")


if __name__ == "__main__":
    main()
