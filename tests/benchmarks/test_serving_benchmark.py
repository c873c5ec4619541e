import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving, serving_servers
from benchmarks.serving import CLASSIFIER, OURS, Window, rows
from benchmarks.serving_load import drive
from mlp_dist.core.errors import ServerError
from tests.helpers.launching import Trained


def test_row_has_medians() -> None:
    windows = [Window(rate, p50=1.0, p99=2.0, cpu=0.5, busy=0.1) for rate in (900.0, 900.0, 90.0)]
    (row,) = rows({(OURS, 8): windows})
    assert row.split() == [OURS, "8", "900", "1.00", "2.00", "0.500", "10%"]


@pytest.mark.parametrize(
    ("path", "manner", "message"),
    [("other", "good", "404"), ("file", "half", "answered with b'HTTP/1.0 200")],
)
def test_load_stops_at_a_wrong_answer(
    path: str, manner: str, message: str, serve_files: Callable[..., Any]
) -> None:
    mirror = serve_files({"file": b"0123456789"}, manner)
    request = f"GET /{path} HTTP/1.0\r\n\r\n".encode()
    port = int(mirror.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ServerError, match=message):
        drive(port, [request], connections=1, seconds=0.5)


@pytest.mark.nightly
def test_both_handlers_are_measured(
    packaged: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = serving_servers.unpack(packaged, tmp_path / "unpacked", trained.result["dataset"])
    monkeypatch.setattr(serving_servers, "train", lambda directory: archive)
    flags = ["--rounds", "2", "--seconds", "0.5", "--warm-up", "0.5", "--connections", "1", "4"]
    monkeypatch.setattr(sys, "argv", ["serving", *flags])
    serving.main()
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = [(each["name"], each["connections"]) for each in values["cells"]]
    assert cells == [(OURS, 1), (CLASSIFIER, 1), (OURS, 4), (CLASSIFIER, 4)]
    for each in values["cells"]:
        assert len(each["rates"]) == 2
        assert 0 < each["p50"] <= each["p99"]
        assert each["cpu"] > 0
