"""What MLflow has of a run: DIR/sent.json."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from mlp_dist.tracking.run_dir import RUNNING, RunRecord, write_json

SENT = "sent.json"


@dataclass
class Sent:
    """What MLflow at `uri`, its password left out, has of the run `key`.

    `files` are the sizes and times of what was uploaded.
    """

    uri: str
    key: str
    run_id: str = ""
    name: str = ""
    params: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    system: int = 0
    files: dict[str, list[int]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    status: str = ""

    @classmethod
    def load(cls, directory: Path, uri: str, key: str) -> Self:
        """Nothing, where another run or another store was sent to before, or nobody knows."""
        values = _read_sent(directory)
        is_same = (values.get("uri"), values.get("key")) == (uri, key)
        return cls(**values) if is_same else cls(uri, key)

    def save(self, directory: Path) -> None:
        write_json(directory / SENT, asdict(self))


def is_sent(directory: Path) -> bool:
    """Whether some MLflow has all of the run in the directory."""
    record, sent = RunRecord.load(directory), _read_sent(directory)
    is_same = (sent.get("key"), sent.get("status")) == (record.key, record.status)
    return is_same and record.status != RUNNING


def sent_id(directory: Path) -> str:
    """The id of the run in the MLflow that it was sent to last; empty where there is none."""
    return str(_read_sent(directory).get("run_id", ""))


def _read_sent(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / SENT).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
