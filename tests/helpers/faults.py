"""Kills trainings at random moments, goes on with them, and compares how they end with one left alone.

  python -m tests.helpers.faults --kills 100
  python -m tests.helpers.faults --kills 20 --processes 2 --seed 1

The last line on stdout is one JSON object; exit code 1 where a kill was not survived.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from mlp_dist.console import command
from tests.helpers.fault_target import STRUCK
from tests.helpers.launching import ROOT, environment, make_store

FLAGS = (
    *("--dataset", "digits", "--hidden-sizes", "64,32", "--batch-size", "20", "--epochs", "8"),
    *("--optimizer", "adam", "--lr", "0.002", "--weight-decay", "0.01", "--schedule", "cosine"),
    *("--warmup-epochs", "1", "--dropout", "0.2", "--augment-shift", "2", "--ema-decay", "0.95"),
    *("--checkpoint-every-steps", "20", "--log-every", "30"),
)
PRECISIONS = ("no", "bf16")

WHO = {
    "launcher SIGKILL": ("launcher", signal.SIGKILL),
    "rank 0 SIGKILL": ("rank 0", signal.SIGKILL),
    "rank 1 SIGKILL": ("rank 1", signal.SIGKILL),
    "launcher SIGTERM": ("launcher", signal.SIGTERM),
    "launcher SIGUSR1": ("launcher", signal.SIGUSR1),
}

FIRST, ANY = (1, 1), (1, 8)
MOMENTS: dict[str, dict[str, tuple[int, int]]] = {
    "starting": {"": FIRST},
    "opening": {"": FIRST},
    "training": {"": FIRST},
    "saving": {"": ANY, "torch:save": ANY, "os:link": ANY, "os:replace": (1, 24), "os:fsync": (1, 48)},
    "evaluating": {"": (1, 2), "torch.nn.functional:cross_entropy": (1, 4)},
    "logging": {"": (1, 3), "mlp_dist.training.recorder:Recorder._request": (1, 2)},
    "finishing": {
        "": FIRST,
        "torch:save": (1, 3),
        "os:replace": FIRST,
        "os:fsync": (1, 4),
        "mlp_dist.training.recorder:RunTracker.draw": FIRST,
        "mlp_dist.training.recorder:RunTracker.run_id": FIRST,
        "mlp_dist.training.recorder:RunTracker.end": FIRST,
        "mlp_dist.training.recorder:Recorder._request": (1, 8),
    },
}
"""Where in each phase a kill comes: before the n-th call of one of these, n from and to; "": of its own."""

OUTPUT = {
    *("last.pt", "previous.pt", "metrics.jsonl", "bundle", "checkpoint", "figures", "tables"),
    *("run.json", "config.json", "sent.json"),
}

KILLS_OF_A_CHAIN = 6
START_SECONDS = 120
GONE_SECONDS = 15
"""Within which every process must have ended after the launcher has."""


@dataclass(frozen=True)
class Setting:
    processes: int
    precision: str

    def __str__(self) -> str:
        return f"{self.processes} process{'es' * (self.processes > 1)}, {self.precision}"

    @property
    def launcher(self) -> list[str]:
        several = ["--multi_gpu", "--main_process_port", "0"] if self.processes > 1 else []
        return [
            *("accelerate", "launch", *several, "--num_processes", str(self.processes)),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        ]


@dataclass(frozen=True)
class Fault:
    """`victim` gets `signum` `delay` seconds after the `nth` `moment` of the phase `when`."""

    who: str
    when: str
    victim: str
    signum: int
    moment: str
    nth: int
    delay: float


def draw(random: Random, who: str, when: str, seconds: float) -> Fault:
    """`seconds` is how long the training lasts that is left alone."""
    victim, signum = WHO[who]
    moment = random.choice(sorted(MOMENTS[when]))
    nth = random.randint(*MOMENTS[when][moment])
    delay = 0.0 if random.random() < 0.5 else random.uniform(0, 0.02)
    if when in ("starting", "opening"):
        # What they take: mostly for imports, of torch and of mlflow.
        delay = random.uniform(0, 4 if when == "starting" else 2)
    elif when == "training":
        delay = random.uniform(0, seconds / 3)
    return Fault(who, when, victim, signum, moment, nth, delay)


class FaultError(Exception):
    """A kill was not survived."""


@dataclass
class Ending:
    """What must be the same at the end of a training however often it was killed."""

    weights: dict[str, str]
    history: list[dict[str, Any]]
    seconds: float = 0.0

    def check(self, other: "Ending") -> None:
        if different := [name for name, digest in self.weights.items() if other.weights[name] != digest]:
            raise FaultError(f"other than without a kill: {', '.join(different)}")
        epochs = [record["epoch"] for record in other.history]
        if epochs != [record["epoch"] for record in self.history]:
            raise FaultError(f"metrics.jsonl lists the epochs {epochs}")
        for expected, found in zip(self.history, other.history, strict=True):
            for name in ("train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy"):
                if not math.isclose(expected[name], found[name], rel_tol=0, abs_tol=1e-9):
                    raise FaultError(
                        f"{name} of epoch {found['epoch']} is {found[name]}, not {expected[name]}"
                    )
            steps = [[step["step"] for step in record["steps"]] for record in (expected, found)]
            if steps[0] != steps[1]:
                raise FaultError(
                    f"epoch {found['epoch']} told the losses of the steps {steps[1]}, not {steps[0]}"
                )


def digest(value: Any) -> str:
    found = hashlib.sha256()
    _update(found, value)
    return found.hexdigest()


def _update(found: Any, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            found.update(repr(key).encode())
            _update(found, value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            _update(found, each)
    else:
        found.update(repr(value).encode())


def read_ending(directory: Path) -> Ending:
    """Of the training in `directory`/output; its run in MLflow is checked too."""
    import torch
    from mlflow import MlflowClient

    output = directory / "output"
    if left := {path.name for path in output.iterdir()} - OUTPUT:
        raise FaultError(f"the output directory holds {', '.join(sorted(left))}")
    state = torch.load(output / "last.pt", weights_only=True)
    parts = {name: state[name] for name in ("model", "best", "average", "optimizer")}
    parts["bundle"] = torch.load(output / "bundle" / "weights.pt", weights_only=True)
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    client = MlflowClient(f"sqlite:///{directory}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    # One that was killed before its first checkpoint has a run with nothing in it.
    with_losses = [run for run in runs if "train/loss" in run.data.metrics]
    if [run.data.tags["mlp_dist.key"] for run in with_losses] != [state["run_key"]]:
        raise FaultError(f"{len(with_losses)} runs of MLflow have losses, not the one {state['run_key']}")
    if (status := with_losses[0].info.status) != "FINISHED":
        raise FaultError(f"the run is {status}")
    epochs = [record["epoch"] for record in history]
    logged = sorted(
        point.step for point in client.get_metric_history(with_losses[0].info.run_id, "train/loss")
    )
    if logged != epochs:
        raise FaultError(f"MLflow has losses of the epochs {logged}, not {epochs}")
    return Ending(
        {name: digest(part) for name, part in parts.items()},
        history,
        sum(record["train_seconds"] for record in history),
    )


@dataclass(frozen=True)
class Started:
    """How a start ended: with the launcher's exit code, whether a process was killed, and what went wrong."""

    code: int
    struck: bool
    problem: str


@dataclass(frozen=True)
class Outcome:
    processes: int
    precision: str
    who: str
    when: str
    problem: str = ""


@dataclass
class Faults:
    """Everything in `root`; `stopping` ends what runs."""

    root: Path
    seed: int
    settings: list[Setting]
    stopping: threading.Event = field(default_factory=threading.Event)
    references: dict[Setting, Ending] = field(default_factory=dict)

    def run(self, kills: int, *, jobs: int) -> list[Outcome]:
        """`kills` kills that happened, of trainings that take turns in `settings`."""
        make_store(self.root / "mlflow.db")
        outcomes: list[Outcome] = []
        lock, number, planned = threading.Lock(), 0, 0

        def work() -> None:
            nonlocal number, planned
            while not self.stopping.is_set():
                with lock:
                    num_kills = min(KILLS_OF_A_CHAIN, kills - len(outcomes) - planned)
                    # Kills that come too late are made up for, but not for ever.
                    if num_kills <= 0 or number > kills + 10:
                        return
                    mine, number, planned = number, number + 1, planned + num_kills
                found = self.chain(mine, self.setting(mine), num_kills)
                with lock:
                    planned -= num_kills
                    outcomes.extend(found)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(self.reference, self.settings))
                for future in [pool.submit(work) for _ in range(jobs)]:
                    future.result()
            finally:
                self.stopping.set()
        return outcomes

    def setting(self, number: int) -> Setting:
        """Of chain `number`."""
        return self.settings[number % len(self.settings)]

    def reference(self, setting: Setting) -> None:
        directory = self.root / f"whole {setting}"
        directory.mkdir()
        shutil.copy(self.root / "mlflow.db", directory)
        started = self.start(directory, setting, None)
        if started.code or started.problem:
            raise FaultError(
                f"a training that nothing killed ended with {started.code} {started.problem}: see {directory}"
            )
        self.references[setting] = read_ending(directory)

    def chain(self, number: int, setting: Setting, num_kills: int) -> list[Outcome]:
        """A training that is killed `num_kills` times."""
        began = time.monotonic()
        directory = self.root / f"chain {number}"
        directory.mkdir()
        shutil.copy(self.root / "mlflow.db", directory)
        outcomes: list[Outcome] = []
        end = ""
        try:
            for fault in [*self.plan(number, setting, num_kills), None]:
                started = self.start(directory, setting, fault)
                if started.problem and not started.struck:
                    raise FaultError(started.problem)
                if fault is not None and started.struck and (started.code or started.problem):
                    kind = (setting.processes, setting.precision, fault.who, fault.when)
                    outcomes.append(Outcome(*kind, started.problem))
                elif started.code:
                    raise FaultError(f"with no kill it ended with {started.code}")
                else:
                    break
            self.references[setting].check(read_ending(directory))
        except Exception as error:
            end = f"{error}: see {directory}"
        if self.stopping.is_set():
            return []
        if end and not any(each.problem for each in outcomes):
            # Which of the kills did it cannot be told from the end.
            outcomes = [replace(each, problem=end) for each in outcomes]
            outcomes = outcomes or [Outcome(setting.processes, setting.precision, "nobody", "-", end)]
        problems = [each.problem for each in outcomes if each.problem] + [end] * bool(end)
        if not problems:
            shutil.rmtree(directory)
        seconds = time.monotonic() - began
        told = "; ".join(dict.fromkeys(problems)) or "survived"
        print(f"chain {number} ({setting}): {len(outcomes)} kills in {seconds:.0f} s: {told}", flush=True)
        return outcomes

    def plan(self, number: int, setting: Setting, num_kills: int) -> list[Fault]:
        """Every kind of kill in turn; those at the end of a training come last."""
        random = Random(f"{self.seed} {setting} {number}")
        kinds = [
            (who, when) for who in WHO for when in MOMENTS if setting.processes > 1 or WHO[who][0] != "rank 1"
        ]
        Random(f"{self.seed} {setting.processes}").shuffle(kinds)
        before = sum(self.setting(other).processes == setting.processes for other in range(number))
        mine = [kinds[(before * KILLS_OF_A_CHAIN + each) % len(kinds)] for each in range(num_kills)]
        mine.sort(key=lambda kind: kind[1] == "finishing")
        seconds = self.references[setting].seconds
        return [draw(random, who, when, seconds) for who, when in mine]

    def start(self, directory: Path, setting: Setting, fault: Fault | None) -> Started:
        """Start or go on with the training in `directory`, and wait until all its processes have ended."""
        here = directory / f"start {len(list(directory.glob('start *')))}"
        here.mkdir()
        told = {} if fault is None else {**asdict(fault), "directory": str(here)}
        (here / "fault.json").write_text(json.dumps(told))
        mark = f"FAULTS_OF={here}"
        begun = any((directory / "output" / name).exists() for name in ("last.pt", "previous.pt"))
        flags = ["--resume"] if begun else [*FLAGS, "--mixed-precision", setting.precision]
        script = str(ROOT / "tests/helpers/fault_target.py")
        variables = environment(
            FAULT=json.dumps(told),
            FAULTS_OF=str(here),
            ACCELERATE_USE_CPU="true",
            OMP_NUM_THREADS="1",
        )
        with (here / "output.txt").open("w") as output:
            launcher = subprocess.Popen(
                [*setting.launcher, script, *flags, "--output-dir", "output"],
                cwd=directory,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        problem = ""
        try:
            if self.wait(launcher, START_SECONDS) is None:
                problem = f"it hung: see {here}"
            deadline = time.monotonic() + GONE_SECONDS
            while not problem and (left := processes_of(mark)):
                if time.monotonic() > deadline:
                    problem = f"{len(left)} of its processes were left over: see {here}"
                time.sleep(0.05)
        finally:
            for pid in processes_of(mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = launcher.wait()
        return Started(code, (here / STRUCK).exists(), problem)

    def wait(self, launcher: subprocess.Popen[bytes], seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while launcher.poll() is None and time.monotonic() < deadline:
            if self.stopping.wait(0.05):
                raise FaultError("stopped")
        return launcher.returncode


def processes_of(mark: str) -> list[int]:
    """Those that still run and have `mark`, a NAME=VALUE, in the environment they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def table(outcomes: list[Outcome]) -> str:
    """Of each kind of kill how many of how many were survived, by the number of processes."""
    total = Counter((each.who, each.when, each.processes) for each in outcomes)
    survived = Counter((each.who, each.when, each.processes) for each in outcomes if not each.problem)
    sizes = sorted({each.processes for each in outcomes})
    lines = [f"{'who':18}{'when':12}" + "".join(f"{f'{size} process(es)':>16}" for size in sizes)]
    for who, when in sorted({(each.who, each.when) for each in outcomes}):
        counts = [(survived[who, when, size], total[who, when, size]) for size in sizes]
        cells = [f"{lived} / {all_}" if all_ else "-" for lived, all_ in counts]
        lines.append(f"{who:18}{when:12}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = command.Parser(
        prog="tests.helpers.faults", usage="python -m tests.helpers.faults [FLAG ...]", description=__doc__
    )
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="(1 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which kills, and when (0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at the same time (2)")
    args = parser.parse_args()
    settings = [Setting(number, precision) for precision in PRECISIONS for number in args.processes]
    root, began = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    outcomes = Faults(root, args.seed, settings).run(args.kills, jobs=args.jobs)
    problems = sorted({each.problem for each in outcomes if each.problem})
    print(table(outcomes))
    for problem in problems:
        print(f"not survived: {problem}")
    if not problems:
        shutil.rmtree(root)
    counts = Counter(f"{each.who}, {each.when}" for each in outcomes)
    told = {
        "kills": len(outcomes),
        "survived": sum(not each.problem for each in outcomes),
        "seconds": round(time.monotonic() - began),
        "seed": args.seed,
        "kinds": dict(sorted(counts.items())),
        "problems": problems,
    }
    print(json.dumps(told), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    command.run(main)
