"""A worker's counters, and what Prometheus scrapes from TorchServe."""

import json
import re
import time
import urllib.request

import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.data.arrays import Dataset
from serve.client import Client
from serve.inference import metrics
from tests.helpers.launching import ROOT, Trained
from tests.helpers.servers import state_of

DASHBOARD = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs/serving.md").read_text()
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def scrape(client: Client) -> dict[str, float]:
    """Name with labels -> value."""
    with urllib.request.urlopen(f"{state_of(client).metrics_url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }


def scrape_when_settled(client: Client) -> dict[str, float]:
    seen, deadline = scrape(client), time.monotonic() + 100
    while time.monotonic() < deadline:
        time.sleep(1.3 * metrics.FLUSH_SECONDS)
        last, seen = seen, scrape(client)
        if all(last.get(name) == value for name, value in seen.items() if name.startswith("mlp_")):
            return seen
    raise AssertionError(seen)


@pytest.mark.slow
def test_prometheus_gets_what_docs_and_dashboard_show(
    served: Client, image_data: Dataset, trained: Trained
) -> None:
    before = scrape_when_settled(served)
    for image in image_data.test.images[:50]:
        served.predict(encode_png(image))
    for bad in (b"", b"no image", b"{"):
        with pytest.raises(ServerError):
            served.predict(bad)
    after = scrape_when_settled(served)

    def growth(name: str, label: str = "") -> float:
        keys = [key for key in after if key.startswith(f"{name}{{") and label in key]
        return sum(after[key] - before.get(key, 0) for key in keys)

    confidence, answers = load_bundle(trained.bundle).probabilities(image_data.test.images[:50]).max(dim=1)
    for number, images in enumerate(torch.bincount(answers, minlength=10).tolist()):
        assert growth("mlp_images_total", f'class="{number}"') == images
    assert growth("mlp_confidence_total") == pytest.approx(confidence.sum().item(), abs=1e-4)
    assert growth("mlp_bad_requests_total", 'type="RequestError"') == 1
    assert growth("mlp_bad_requests_total", 'type="ImageError"') == 2
    assert growth("ts_inference_requests_total") == 53

    rows = re.findall(r"^\| (`(?:mlp_|ts_).*?) \|", PAGE, flags=re.MULTILINE)
    assert len(EXPRESSIONS) >= 6
    assert len(rows) >= 5
    names = {key.partition("{")[0] for key in after}
    labels = {label for key in after for label in re.findall(r'[{,](\w+)="', key)}
    for expression in (*EXPRESSIONS, *rows):
        used = re.findall(r"\b(?:mlp|ts)_\w+", expression)
        assert used, expression
        assert set(used) <= names, expression
        assert set(re.findall(r"by \((\w+)\)", expression)) <= labels, expression
