"""Kill trainings at random moments, resume them, and compare their end with an uninterrupted training's.

  python -m tests.helpers.faults --kills 100
  python -m tests.helpers.faults --kills 20 --processes 2 --seed 1

The last line on stdout is one JSON object; the exit code is 1 if a kill was not survived.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from mlp_dist.console import command
from tests.helpers.checkpoints import assert_same_tensors
from tests.helpers.comparing import logged, read_history, runs_of
from tests.helpers.fault_target import STRUCK
from tests.helpers.launching import NOTHING_ELSE, ROOT, environment, make_store, processes

FLAGS = (
    "--recipe mnist-quick --dataset digits --hidden-sizes 64,32 --batch-size 20 --epochs 8 --optimizer adam "
    "--lr 0.002 --weight-decay 0.01 --schedule cosine --warmup-epochs 1 --dropout 0.2 --augment-shift 2 "
    "--ema-decay 0.95 --checkpoint-every-steps 20 --log-every 30"
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
    "reporting": {"": (1, 3)},
    "finishing": {
        "": FIRST,
        "torch:save": (1, 3),
        "os:replace": FIRST,
        "os:fsync": (1, 4),
        "mlp_dist.training.report:write_predictions": FIRST,
        "mlp_dist.tracking.run_dir:RunRecord.save": FIRST,
        "mlp_dist.tracking.follow:Follower.wait": FIRST,
    },
}
"""Phase -> functions -> the range of n: the kill is at the n-th call; "": the phase's own function."""

OUTPUT = {
    *("last.pt", "previous.pt", "metrics.jsonl", "bundle", "samples.npz", "predictions.npz"),
    *("run.json", "config.json", "figures", "tables", "uploaded.json"),
}

KILLS_PER_CHAIN = 6
START_SECONDS = 200
GONE_SECONDS = 100
"""Limit for all processes to end after the launcher."""


@dataclass(frozen=True)
class Setting:
    processes: int
    precision: str

    def __str__(self) -> str:
        return f"{self.processes} process{'es' * (self.processes > 1)}, {self.precision}"

    @property
    def launcher(self) -> list[str]:
        return ["accelerate", "launch", *processes(self.processes), "--num_machines", "1", *NOTHING_ELSE]


@dataclass(frozen=True)
class Fault:
    """`victim` gets `signum` `delay` seconds after the `nth` call of `moment` in the phase `when`."""

    who: str
    when: str
    victim: str
    signum: int
    moment: str
    nth: int
    delay: float


def draw(random: Random, who: str, when: str, seconds: float) -> Fault:
    """`seconds` is the duration of an uninterrupted training."""
    victim, signum = WHO[who]
    moment = random.choice(sorted(MOMENTS[when]))
    nth = random.randint(*MOMENTS[when][moment])
    delay = 0.0 if random.random() < 0.5 else random.uniform(0, 0.02)
    if when in ("starting", "opening"):
        # Mostly imports.
        delay = random.uniform(0, 4 if when == "starting" else 2)
    elif when == "training":
        delay = random.uniform(0, seconds / 3)
    return Fault(who, when, victim, signum, moment, nth, delay)


@dataclass
class Ending:
    """The parts of a finished training that no kill may change."""

    weights: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return float(sum(record["train_seconds"] for record in self.history))

    def check(self, other: "Ending") -> None:
        """Raises AssertionError if the other one has not the same weights and metrics."""
        assert_same_tensors(other.weights, self.weights)
        for expected, found in zip(self.history, other.history, strict=True):
            assert found["epoch"] == expected["epoch"]
            for name in ("train_loss", "val_loss", "test_loss", "train_accuracy", "val_accuracy"):
                assert math.isclose(expected[name], found[name], rel_tol=0, abs_tol=1e-9), (name, found)
            steps = [[step["step"] for step in record["steps"]] for record in (expected, found)]
            assert steps[0] == steps[1]


def read_ending(directory: Path) -> Ending:
    """The end of the training in `directory`/output, whose run in MLflow is checked, too."""
    import torch

    output = directory / "output"
    assert {path.name for path in output.iterdir()} <= OUTPUT
    state = torch.load(output / "last.pt", weights_only=True)
    parts = {name: state[name] for name in ("model", "best", "average", "optimizer")}
    parts["bundle"] = torch.load(output / "bundle" / "weights.pt", weights_only=True)
    history = read_history(output)
    # A training that was killed before its first checkpoint has left an empty run.
    [run] = [run for run in runs_of(directory) if "train/loss" in run.data.metrics]
    assert (run.data.tags["mlp_dist.key"], run.info.status) == (state["run_key"], "FINISHED")
    steps = [step for step, _ in logged(directory, run.info.run_id)]
    assert steps == [record["epoch"] for record in history]
    return Ending(parts, history)


@dataclass(frozen=True)
class Outcome:
    """Of one kill; an empty `problem` means survived."""

    processes: int
    who: str
    when: str
    problem: str = ""


@dataclass
class Faults:
    """Chains of kills in `root`."""

    root: Path
    seed: int
    settings: list[Setting]
    references: dict[Setting, Ending] = field(default_factory=dict)

    def run(self, kills: int, *, jobs: int) -> list[Outcome]:
        """Kill `kills` times, in trainings that alternate between the settings."""
        make_store(self.root / "mlflow.db")
        outcomes: list[Outcome] = []
        number = 0
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self.reference, self.settings))
            # A kill may come too late; further chains make up for it, within limits.
            while (missing := kills - len(outcomes)) > 0 and number < kills + 10:
                lengths = [min(KILLS_PER_CHAIN, missing - at) for at in range(0, missing, KILLS_PER_CHAIN)]
                for found in pool.map(self.chain, range(number, number + len(lengths)), lengths):
                    outcomes += found
                number += len(lengths)
        return outcomes

    def setting(self, chain: int) -> Setting:
        return self.settings[chain % len(self.settings)]

    def reference(self, setting: Setting) -> None:
        directory = self.new_directory(f"reference {setting}")
        code, _, problem = self.start(directory, setting, None)
        assert (code, problem) == (0, ""), f"without a kill: {code} {problem}: see {directory}"
        self.references[setting] = read_ending(directory)

    def new_directory(self, name: str) -> Path:
        (self.root / name).mkdir()
        shutil.copy(self.root / "mlflow.db", self.root / name)
        return self.root / name

    def chain(self, number: int, num_kills: int) -> list[Outcome]:
        """A training that is killed `num_kills` times."""
        setting = self.setting(number)
        began, directory = time.monotonic(), self.new_directory(f"chain {number}")
        outcomes: list[Outcome] = []
        end = ""
        try:
            for fault in [*self.plan(number, setting, num_kills), None]:
                code, struck, problem = self.start(directory, setting, fault)
                assert struck or not problem, problem
                if fault is not None and struck and (code or problem):
                    outcomes.append(Outcome(setting.processes, fault.who, fault.when, problem))
                else:
                    assert code == 0, f"without a kill it ended with {code}"
                    break
            self.references[setting].check(read_ending(directory))
        except Exception as error:
            end = f"{error!r}: see {directory}"
        if end and not any(each.problem for each in outcomes):
            # Any of the kills may be the cause.
            outcomes = [replace(each, problem=end) for each in outcomes]
            outcomes = outcomes or [Outcome(setting.processes, "nobody", "-", end)]
        problems = [each.problem for each in outcomes if each.problem] + [end] * bool(end)
        if not problems:
            shutil.rmtree(directory)
        text = "; ".join(dict.fromkeys(problems)) or "survived"
        seconds = time.monotonic() - began
        print(f"chain {number} ({setting}): {len(outcomes)} kills in {seconds:.0f} s: {text}", flush=True)
        return outcomes

    def plan(self, number: int, setting: Setting, num_kills: int) -> list[Fault]:
        """All kinds of kill in turn; kills at the end of a training come last."""
        random = Random(f"{self.seed} {setting} {number}")
        kinds = [
            (who, when) for who in WHO for when in MOMENTS if setting.processes > 1 or WHO[who][0] != "rank 1"
        ]
        Random(f"{self.seed} {setting.processes}").shuffle(kinds)
        before = sum(self.setting(other).processes == setting.processes for other in range(number))
        mine = [kinds[(before * KILLS_PER_CHAIN + each) % len(kinds)] for each in range(num_kills)]
        mine.sort(key=lambda kind: kind[1] == "finishing")
        seconds = self.references[setting].seconds
        return [draw(random, who, when, seconds) for who, when in mine]

    def start(self, directory: Path, setting: Setting, fault: Fault | None) -> tuple[int, bool, str]:
        """Start or resume the training in `directory`, and wait until all its processes have ended.

        Returns the launcher's exit code, whether a process was killed, and a problem.
        """
        here = directory / f"start {len(list(directory.glob('start *')))}"
        here.mkdir()
        text = json.dumps({} if fault is None else {**asdict(fault), "directory": str(here)})
        (here / "fault.json").write_text(text)
        has_begun = any((directory / "output" / name).exists() for name in ("last.pt", "previous.pt"))
        flags = ["--resume"] if has_begun else [*FLAGS.split(), "--mixed-precision", setting.precision]
        target = str(ROOT / "tests/helpers/fault_target.py")
        with (here / "output.txt").open("w") as output:
            launcher = subprocess.Popen(
                [*setting.launcher, target, *flags, "--output-dir", "output"],
                cwd=directory,
                env=environment(
                    FAULT=text, FAULTS_OF=str(here), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1"
                ),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        mark, problem = f"FAULTS_OF={here}", ""
        try:
            try:
                launcher.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
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
        return code, (here / STRUCK).exists(), problem


def processes_of(mark: str) -> list[int]:
    """The running processes that were started with `mark`, a NAME=VALUE, in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


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
    for problem in problems:
        print(f"not survived: {problem}")
    if not problems:
        shutil.rmtree(root)
    summary = {
        "kills": len(outcomes),
        "survived": sum(not each.problem for each in outcomes),
        "seconds": round(time.monotonic() - began),
        "seed": args.seed,
        "kinds": dict(sorted(Counter(f"{each.who}, {each.when}" for each in outcomes).items())),
        "problems": problems,
    }
    print(json.dumps(summary), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    command.run(main)
