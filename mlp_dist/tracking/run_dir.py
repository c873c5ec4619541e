"""A run as its directory holds it. That is the truth of it: MLflow is brought to what stands here."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from mlp_dist.core.errors import TrackingError
from mlp_dist.core.io import replacing_file

RECORD = "run.json"
PLAN = "sweep.json"  # In the directory of a sweep.
SYSTEM = "system.jsonl"
BUNDLE = "bundle"
CONFIG = "config.json"
CHECKPOINTS = "checkpoint"
TABLES = ("tables/per_class.json", "tables/mistakes.json")
"""In MLflow's own format, which its page shows as tables."""

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)


@dataclass(kw_only=True)
class RunRecord:
    """What a run is, and how far it is; the figures of its epochs stand in metrics.jsonl beside it.

    `key` names the run wherever it is sent to. `parent` is the directory of the run it is nested in;
    `dataset` has name, digest and the number of its images, of which some may be held out. `artifacts` are
    files and directories here that belong to it; of the weights that were kept, `models` have name, epoch and
    the directory of their files.
    Times are milliseconds since 1970.
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
        """Raises TrackingError where there is none, or what is there is not one."""
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
