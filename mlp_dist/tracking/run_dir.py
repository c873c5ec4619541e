"""What a run's directory holds. Training writes these files; pictures and MLflow's run are made from them."""

import itertools
import json
import os
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import replacing_file

RECORD = "run.json"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "last.pt"
SAMPLES, PREDICTIONS = "samples.npz", "predictions.npz"
"""What the pictures are drawn from."""

BUNDLE = "bundle"
FIGURES = "figures"
TABLES = "tables"
"""Tables have the format of `mlflow.log_table`."""

PLAN, SPACE = "sweep.json", "space.toml"
"""In a sweep's directory."""

UPLOADED = "uploaded.json"
"""Where MLflow was last seen to have the whole run; never taken for the truth about MLflow."""

OUTPUTS = Path("outputs")

_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and a number may be appended."""

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return int(time.time() * 1000)


@dataclass(kw_only=True)
class RunRecord:
    """run.json: a run's description and state; its metrics by epoch are in metrics.jsonl.

    `key` identifies the run in every MLflow it is uploaded to. `experiment_id` and `run_id` are those of
    MLflow's environment variables; where they are "", the experiment is found by its name, and the run is
    created. `parent` is the directory of the run it is nested in. `dataset` has the name, digest and numbers
    of images. `summary` are the figures of the whole run, `reason` is why it failed. Times are milliseconds
    since 1970.
    """

    experiment: str
    name: str
    key: str
    description: str = ""
    experiment_id: str = ""
    run_id: str = ""
    parent: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None
    summary: dict[str, float] = field(default_factory=dict)
    status: str = RUNNING
    reason: str = ""
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int | None = None

    def save(self, directory: Path) -> None:
        write_json(directory / RECORD, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises TrackingError if the file is missing or damaged."""
        path = directory / RECORD
        try:
            values = json.loads(path.read_text())
            # 0.1.0 listed the files, too.
            names = {each.name for each in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in names})
        except FileNotFoundError as error:
            raise TrackingError(f"{directory} holds no run: there is no {RECORD}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise TrackingError(f"{path} cannot be read: {error}") from error

    def open(self) -> None:
        self.status, self.reason, self.ended_ms = RUNNING, "", None

    def end(self, status: str, *, reason: str = "", at_ms: int | None = None) -> None:
        self.status, self.reason, self.ended_ms = status, reason, at_ms or now_ms()


def stamped(name: str) -> str:
    return f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def choose_output_dir(config: TrainConfig, resume: str) -> Path:
    """`config.output_dir`, the newest run to resume, or a new directory. Raises UsageError."""
    if config.output_dir is not None:
        return config.output_dir
    if resume == "auto":
        raise UsageError("resume is auto; it needs --output-dir, where there may be a run to resume")
    if resume == "yes":
        return newest_output_dir(CHECKPOINT, "run")
    return make_output_dir(config.run_name or stamped(config.recipe))


def make_output_dir(name: str) -> Path:
    """Make outputs/NAME, or outputs/NAME-2 and so on if it exists."""
    wanted = OUTPUTS / name.replace(os.sep, "-").encode()[:_LONGEST_NAME].decode(errors="ignore")
    others = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([wanted], others) if make_directory(each, exist_ok=False))


def make_directory(path: Path, *, exist_ok: bool = True) -> bool:
    """False if it exists and must not. Raises UsageError if it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            return False
        raise UsageError(
            f"cannot create the output directory {path.absolute()} ({error.strerror}); "
            "choose another --output-dir"
        ) from error
    return True


def newest_output_dir(file: str, kind: str) -> Path:
    """The directory under outputs whose `file` was written last. Raises UsageError if there is none."""
    found = sorted(OUTPUTS.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(
            f"there is no {kind} under {OUTPUTS.absolute()} to resume; name its directory with --output-dir"
        )
    return found[-1].parent


def write_json(path: Path, values: Any) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))


def has_record(directory: Path) -> bool:
    return (directory / RECORD).exists()


def runs_in(directory: Path) -> list[Path]:
    """The directories of the run in `directory` and of those nested in it, parents first.

    Raises UsageError if there is none.
    """
    found = sorted(path.parent.absolute() for path in directory.rglob(RECORD))
    if not found:
        raise UsageError(
            f"{directory} holds no run: there is no {RECORD} in it; name a training's --output-dir"
        )
    return found


def parent_of(directory: Path, record: RunRecord) -> Path | None:
    """The directory of the run in which this one is nested: the enclosing one, even if both were moved."""
    if record.parent is None:
        return None
    return directory.parent if has_record(directory.parent) else Path(record.parent)


def read_history(directory: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl, without a last line that is still being written. Raises TrackingError."""
    path = directory / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(dict(json.loads(line.decode())))
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"{path}:{number}: the line is damaged ({error}); remove it and run the command again"
            ) from error
    return found


def files_of(directory: Path) -> list[Path]:
    """The files that MLflow lists as the run's artifacts. Hidden files are still being written."""
    found = [directory / name for name in (CONFIG, SPACE)]
    found += [path for name in (FIGURES, TABLES) for path in sorted((directory / name).glob("*"))]
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


@dataclass(frozen=True)
class Uploaded:
    """uploaded.json: the run in MLflow, and when it had ended as MLflow was last seen to have all of it."""

    key: str = ""
    run_id: str = ""
    experiment_id: str = ""
    ended_ms: int | None = None

    def save(self, directory: Path) -> None:
        write_json(directory / UPLOADED, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """An empty one if the file is missing or damaged."""
        try:
            return cls(**json.loads((directory / UPLOADED).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()


def is_uploaded(directory: Path) -> bool:
    """True if some MLflow was seen to have the run as it ended."""
    record, found = RunRecord.load(directory), Uploaded.load(directory)
    return record.status != RUNNING and (found.key, found.ended_ms) == (record.key, record.ended_ms)


def last_written_ms(directory: Path) -> int:
    return max(path.stat().st_mtime_ns for path in os.scandir(directory) if path.is_file()) // 1_000_000
