"""What a worker counts, and what of it TorchServe gives to Prometheus."""

import json
import re
import time
import urllib.request

import pytest
import torch
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ImageError, ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.data.image_set import Dataset
from serve.inference import metrics
from serve.inference.request_errors import RequestError
from serve.inference.metrics import Metrics
from serve.client import Client
from serve.torchserve.state import State
from tests.helpers.launching import ROOT, Trained

DASHBOARD = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs/serving.md").read_text()
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

LINE = re.compile(r"\[METRICS\](\w+)\.\w+:([\d.e-]+)\|#([^|]*)\|#type:(\w+)\|")


def told(caplog: pytest.LogCaptureFixture) -> dict[tuple[str, str], float]:
    """Name and last label -> value, of the lines that came since the last call."""
    found = {}
    for message in caplog.messages:
        match = LINE.match(message)
        assert match, message
        name, value, labels, _ = match.groups()
        found[name, labels.rpartition(":")[2]] = float(value)
    caplog.clear()
    return found


def counting(caplog: pytest.LogCaptureFixture) -> Metrics:
    """With what TorchServe's worker has for it."""
    # Its constructor leaves a file open.
    cache = MetricsCacheYamlImpl.__new__(MetricsCacheYamlImpl)
    cache.cache = {}
    caplog.set_level("INFO", "ts.metrics")
    return Metrics(cache, "mlp", "1.5", ["0", "1", "a:b,c|d\n"])


def test_a_worker_begins_with_nothing(caplog: pytest.LogCaptureFixture) -> None:
    counting(caplog)
    first = told(caplog)
    assert first.pop(("mlp_worker_memory_bytes", "1.5")) > 1e7
    assert {name for name, _ in first} == {
        "mlp_images_total",
        "mlp_confidence_total",
        "mlp_bad_requests_total",
    }
    assert {("mlp_images_total", "a_b_c_d_"), ("mlp_bad_requests_total", "EmptyPageError")} <= set(first)
    assert set(first.values()) == {0}


def test_what_is_counted_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.05)
    worker = counting(caplog)
    caplog.clear()
    for _ in range(100):
        worker.count_answers([[0.2, 0.7, 0.1], [0.9, 0.1, 0.0]])
        worker.count_error(RequestError("x"))
    worker.count_error(ImageError("x"))
    assert caplog.messages == []
    deadline = time.monotonic() + 10
    while len(caplog.messages) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    lines = told(caplog)
    assert lines.pop(("mlp_worker_memory_bytes", "1.5")) > 1e7
    assert lines == {
        ("mlp_images_total", "0"): 100,
        ("mlp_images_total", "1"): 100,
        ("mlp_confidence_total", "1.5"): pytest.approx(160),
        ("mlp_bad_requests_total", "RequestError"): 100,
        ("mlp_bad_requests_total", "ImageError"): 1,
    }


def test_where_no_torchserve_is_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    alone = Metrics(None, "mlp", "1.5", ["0", "1"])
    alone.count_answers([[0.2, 0.8]])
    alone.count_error(ImageError("x"))
    assert caplog.messages == []


def scrape(client: Client) -> dict[str, float]:
    """Name with labels -> value."""
    assert client.key_file is not None
    state = State.load(client.key_file.parent)
    assert state is not None
    with urllib.request.urlopen(f"{state.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")
    }


def total(scraped: dict[str, float], name: str, label: str = "") -> float:
    return sum(value for key, value in scraped.items() if key.startswith(f"{name}{{") and label in key)


def settled(client: Client) -> dict[str, float]:
    """What is scraped when the worker has told all."""
    seen, deadline = scrape(client), time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(1.3 * metrics.SECONDS)
        last, seen = seen, scrape(client)
        if all(last.get(name) == value for name, value in seen.items() if name.startswith("mlp_")):
            return seen
    raise AssertionError(seen)


@pytest.fixture(scope="module")
def scrapes(served: Client, image_data: Dataset) -> tuple[dict[str, float], dict[str, float]]:
    """Before and after 50 images and three bad requests."""
    before = settled(served)
    for image in image_data.test.images[:50]:
        served.predict(encode_png(image))
    for bad in (b"", b"no image", b"{"):
        with pytest.raises(ServerError):
            served.predict(bad)
    return before, settled(served)


@pytest.mark.slow
def test_prometheus_is_told_what_was_answered(
    scrapes: tuple[dict[str, float], dict[str, float]], image_data: Dataset, trained: Trained
) -> None:
    before, after = scrapes

    def grown(name: str, label: str = "") -> float:
        return total(after, name, label) - total(before, name, label)

    confidence, answers = load_bundle(trained.bundle).probabilities(image_data.test.images[:50]).max(dim=1)
    for number, images in enumerate(torch.bincount(answers, minlength=10).tolist()):
        assert grown("mlp_images_total", f'class="{number}"') == images
    assert grown("mlp_confidence_total") == pytest.approx(confidence.sum().item(), abs=1e-4)
    assert grown("mlp_bad_requests_total", 'type="RequestError"') == 1
    assert grown("mlp_bad_requests_total", 'type="ImageError"') == 2
    assert grown("ts_inference_requests_total") == 53


@pytest.mark.slow
def test_all_that_the_dashboard_and_the_page_show_is_there(
    scrapes: tuple[dict[str, float], dict[str, float]],
) -> None:
    rows = re.findall(r"^\| (`(?:mlp_|ts_).*?) \|", PAGE, flags=re.MULTILINE)
    assert len(EXPRESSIONS) >= 6
    assert len(rows) >= 6
    there = {key.partition("{")[0] for key in scrapes[1]}
    labels = {label for key in scrapes[1] for label in re.findall(r'[{,](\w+)="', key)}
    for expression in (*EXPRESSIONS, *rows):
        named = re.findall(r"\b(?:mlp|ts)_\w+", expression)
        assert named, expression
        assert set(named) <= there, expression
        assert set(re.findall(r"by \((\w+)\)", expression)) <= labels, expression
