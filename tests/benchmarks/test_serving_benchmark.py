import json
import sys
from pathlib import Path

import pytest

from benchmarks import serving, serving_servers
from benchmarks.serving import CLASSIFIER, OURS
from tests.helpers.launching import Trained


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
