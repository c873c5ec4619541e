"""All kinds of good and bad requests to a real TorchServe, over several connections at once."""

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mlp_dist.core.bundle import load_bundle
from serve.client import Client
from serve.torchserve.api import describe_version, read_key
from tests.helpers.fuzz_inputs import WRONG, Input, good_images, inputs
from tests.helpers.launching import Trained
from tests.helpers.servers import state_of

CONNECTIONS = 8
REFUSED = (400, 413, 415, 503)


def send(client: Client, each: Input) -> tuple[int, bytes]:
    assert client.key_file is not None
    headers = {**each.headers, "Authorization": f"Bearer {read_key(client.key_file).value}"}
    headers["Content-Type"] = each.content_type
    with closing(http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=60)) as connection:
        connection.request("POST", each.path, each.body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def find_problem(each: Input, status: int, body: bytes, expected: list[dict[str, float]]) -> str:
    """Why the answer is wrong, or an empty string."""
    if each.image is None and status in REFUSED:
        values = json.loads(body)
        # TorchServe itself refuses some requests.
        error = values.get("error", values)
        reason = error if isinstance(error, str) else error.get("message")
        # TorchServe's own 503 means a lost worker.
        return "" if reason and ("error" in values or status != 503) else "no reason"
    if status != 200:
        return "a good image was refused" if each.image is not None else "an unexpected status"
    found = json.loads(body, parse_constant=lambda name: name)
    if each.image is None or probabilities(found) == pytest.approx(expected[each.image], abs=2e-6):
        return ""
    return "another image's answer"


def probabilities(answer: Any) -> dict[str, float]:
    if "outputs" in answer:
        return dict(zip(*(each["data"] for each in answer["outputs"]), strict=True))
    if "predictions" in answer:
        [answer] = answer["predictions"]
    return dict(answer)


def worker_ids(client: Client) -> list[int]:
    return [worker["pid"] for worker in describe_version(state_of(client))["workers"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [400, pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])]
)
def test_fuzzed_requests(number: int, served: Client, trained: Trained) -> None:
    """No worker dies, and bad requests do not affect good ones."""
    model = load_bundle(trained.bundle)
    random = np.random.default_rng(1)
    files = good_images(random)
    expected = [model.answer(file) for file in files]
    sent = list(inputs(number, files, random))
    workers = worker_ids(served)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(partial(send, served), sent))
    assert worker_ids(served) == workers
    problems = [
        f"{each.kind}: {problem}; sent {each.body[:60]!r}; answered {status} {body[:200]!r}"
        for each, (status, body) in zip(sent, answers, strict=True)
        if (problem := find_problem(each, status, body, expected))
    ]
    assert problems == []
    assert set(WRONG) <= {each.kind for each in sent}
    assert {status for status, _ in answers} >= {200, 400, 413}
