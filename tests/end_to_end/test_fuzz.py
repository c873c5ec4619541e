"""A short run of what `python -m tests.helpers.fuzz --inputs 10000` does at length."""

from pathlib import Path

import pytest

from serve.package import build_archive
from serve.server import running
from tests.helpers.asking import write_bundle
from tests.helpers.fuzz import fuzz
from tests.helpers.fuzz_inputs import WRONG

pytestmark = pytest.mark.slow


def test_no_worker_dies_and_no_good_image_pays_for_a_bad_one(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", preprocess="auto")
    (tmp_path / "work").mkdir()
    mar = build_archive(bundle, "mlp", "1", tmp_path / "work")
    with running(mar, (bundle / "golden.png").read_bytes()) as client:
        fuzzer = fuzz(client, bundle, 400, seed=1)
    assert fuzzer.problems == []
    assert sum(fuzzer.statuses.values()) > 350
    kinds = {kind for kind, _ in fuzzer.statuses}
    assert set(WRONG) <= kinds
    assert {status for _, status in fuzzer.statuses} >= {200, 400, 413}
