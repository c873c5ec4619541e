"""The files of a run's directory that describe it: run.json, and sent.json with what MLflow already has."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from mlp_dist.core.errors import TrackingError
from mlp_dist.core.io import replacing_file

RECORD = "run.json"
SENT = "sent.json"
PLAN = "sweep.json"  # In a sweep's directory.
METRICS = "metrics.jsonl"
SAMPLES = "samples.npz"
PREDICTIONS = "predictions.npz"
BUNDLE = "bundle"
CONFIG = "config.json"
CHECKPOINTS = "checkpoint"
FIGURES = "figures"
TABLES = ("tables/per_class.json", "tables/mistakes.json")
"""In the format of `mlflow.log_table`."""

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return int(time.time() * 1000)


@dataclass(kw_only=True)
class RunRecord:
    """run.json: a run's description and state; its metrics by epoch are in metrics.jsonl.

    `key` identifies the run in every MLflow it is uploaded to. `parent` is the directory of the run it is
    nested in. `dataset` has the name, digest and numbers of images. `artifacts` are files and directories,
    relative to the run's. `models` have a name, an epoch and the directory of their files. Times are
    milliseconds since 1970.
    """

    experiment: str
    name: str
    key: str
    description: str = ""
    parent: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None
    artifacts: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    status: str = RUNNING
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int | None = None

    def save(self, directory: Path) -> None:
        write_json(directory / RECORD, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Raises TrackingError if the file is missing or damaged."""
        path = directory / RECORD
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise TrackingError(f"{directory} holds no run: there is no {RECORD}") from error
        except (OSError, ValueError, TypeError) as error:
            raise TrackingError(f"{path} cannot be read: {error}") from error

    def add(self, *artifacts: str) -> None:
        self.artifacts += [each for each in artifacts if each not in self.artifacts]

    def open(self) -> None:
        self.status, self.ended_ms = RUNNING, None

    def end(self, status: str, at_ms: int | None = None) -> None:
        self.status, self.ended_ms = status, at_ms or now_ms()


def write_json(path: Path, values: Any) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1))


def has_record(directory: Path) -> bool:
    return (directory / RECORD).exists()


@dataclass
class Sent:
    """sent.json: what MLflow at `uri` (without its password) already has of the run `key`.

    `files` maps names to the size and modification time that were uploaded.
    """

    uri: str
    key: str
    run_id: str = ""
    name: str = ""
    params: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    files: dict[str, list[int]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    status: str = ""

    @classmethod
    def load(cls, directory: Path, uri: str, key: str) -> Self:
        """An empty record if the file is missing, damaged, or about another run or store."""
        values = _read_sent(directory)
        if (values.get("uri"), values.get("key")) != (uri, key):
            return cls(uri, key)
        # 0.1.0 wrote `system`, too.
        return cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})

    def save(self, directory: Path) -> None:
        write_json(directory / SENT, asdict(self))


def is_sent(directory: Path) -> bool:
    """True if some MLflow has the complete run."""
    record, sent = RunRecord.load(directory), _read_sent(directory)
    is_same = (sent.get("key"), sent.get("status")) == (record.key, record.status)
    return is_same and record.status != RUNNING


def sent_id(directory: Path) -> str:
    """The run's id in the MLflow it was uploaded to last; "" if there is none."""
    return str(_read_sent(directory).get("run_id", ""))


def _read_sent(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / SENT).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
