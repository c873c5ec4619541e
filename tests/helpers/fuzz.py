"""Sends all kinds of good and bad requests to a real TorchServe, over several connections at once.

  python -m tests.helpers.fuzz                    500 requests
  python -m tests.helpers.fuzz --inputs 10000     counts by kind and status; the last line is JSON

Two thirds of the requests are bad. No worker may die, no bad request may get a status of 500 or above, and
no good image may get an error or another image's answer. TorchServe's HTTP library itself answers some
damaged forms with 500; these are allowed.
"""

import http.client
import json
import sys
import tempfile
import threading
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mlp_dist.console import command
from mlp_dist.core.bundle import load_bundle
from serve.client import Client
from serve.package import build_archive
from serve.server import running
from serve.torchserve.keys import read_key
from serve.torchserve.management import describe_version
from tests.helpers.fuzz_inputs import DAMAGED, HUGE, Input, good_images, inputs
from tests.helpers.handlers import write_bundle
from tests.helpers.servers import state_of

CONNECTIONS = 8
TIMEOUT = 60.0

REFUSED = (400, 413, 415)
BY_TORCHSERVE = (413, 417)
"""Sent by TorchServe's HTTP server itself, with an empty body."""


class Fuzzer:
    """Sends inputs from several threads and collects `problems`, and `statuses` by kind."""

    def __init__(self, client: Client, expected: list[dict[str, float]]) -> None:
        assert client.key_file is not None
        self.client, self.expected = client, expected
        self.key = read_key(client.key_file).value
        self.problems: list[str] = []
        self.statuses: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def send(self, waiting: list[Input]) -> None:
        source = iter(waiting)
        threads = [threading.Thread(target=self._send_all, args=(source,)) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send_all(self, source: Any) -> None:
        connection = self._connect()
        while True:
            with self._lock:
                each = next(source, None)
            if each is None:
                connection.close()
                return
            try:
                problem = self._send(connection, each)
            except (OSError, http.client.HTTPException) as error:
                # TorchServe disconnects on too large a header, before its answer is read.
                problem = None if each.kind == HUGE else f"no answer: {error!r}"
                connection.close()
                connection = self._connect()
            except ValueError as error:
                problem = f"an answer that is not JSON: {error!r}"
            if problem:
                with self._lock:
                    sent = f"{each.content_type} {each.headers and list(each.headers)} {each.body[:60]!r}"
                    self.problems.append(f"{each.kind}: {problem}; sent {len(each.body)} bytes, {sent}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.client.url).netloc, timeout=TIMEOUT)

    def _send(self, connection: http.client.HTTPConnection, each: Input) -> str | None:
        headers = {**each.headers, "Authorization": f"Bearer {self.key}"}
        if each.content_type:
            headers["Content-Type"] = each.content_type
        connection.request("POST", each.path, each.body, headers)
        answer = connection.getresponse()
        body, status = answer.read(), answer.status
        with self._lock:
            self.statuses[each.kind, status] += 1
        if b'"error"' not in body and status != 200:
            # TorchServe may not have read the whole request.
            connection.close()
        if each.kind == DAMAGED and status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return None if body.startswith(b'{\n  "code": 500') else f"status 500: {body[:200]!r}"
        if each.image is None and status in BY_TORCHSERVE and not body:
            return None
        if each.image is None and status in REFUSED:
            values = json.loads(body)
            error = values.get("error", {})
            reason = (set(error) == {"type", "message"} and error["message"]) or values.get("message")
            return None if reason else f"status {status} without a reason: {body[:200]!r}"
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        found = json.loads(body, parse_constant=lambda name: name)
        return None if each.image is None else _compare(found, self.expected[each.image])


def _compare(found: Any, expected: dict[str, float]) -> str | None:
    if "outputs" in found:
        labels, values = (each["data"] for each in found["outputs"])
        found = dict(zip(labels, values, strict=True))
    elif "predictions" in found:
        [found] = found["predictions"]
    if set(found) != set(expected):
        return f"the classes are {sorted(found)}"
    worst = max(abs(found[name] - expected[name]) for name in expected)
    return None if worst <= 2e-6 else f"the answer is off by {worst}"


def fuzz(number: int, seed: int, directory: Path) -> Fuzzer:
    """Send requests to a new server with an untrained model."""
    bundle = write_bundle(directory / "bundle", preprocess="auto")
    (directory / "work").mkdir()
    mar = build_archive(bundle, "mlp", "1", directory / "work")
    random = np.random.default_rng(seed)
    files = good_images(random)
    model = load_bundle(bundle)
    with running(mar, model.golden_image) as client:
        fuzzer = Fuzzer(client, [model.answer(file) for file in files])
        before = [worker["pid"] for worker in describe_version(state_of(client))["workers"]]
        fuzzer.send(list(inputs(number, files, random)))
        after = [worker["pid"] for worker in describe_version(state_of(client))["workers"]]
    if before != after:
        fuzzer.problems.append(f"workers died: before {before}, after {after}")
    return fuzzer


def main() -> int:
    parser = command.Parser(prog="python -m tests.helpers.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=500, metavar="N", help="number of requests (500)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlp-fuzz-") as name:
        fuzzer = fuzz(args.inputs, args.seed, Path(name))
    by_kind: dict[str, dict[int, int]] = {}
    for (kind, status), count in sorted(fuzzer.statuses.items()):
        by_kind.setdefault(kind, {})[status] = count
    for kind, statuses in by_kind.items():
        print(f"{kind:16}", *(f"{status}: {count:5}" for status, count in statuses.items()))
    for problem in fuzzer.problems[:20]:
        print(f"error: {problem}", file=sys.stderr)
    print(json.dumps({"inputs": args.inputs, "problems": len(fuzzer.problems), "statuses": by_kind}))
    return 1 if fuzzer.problems else 0


if __name__ == "__main__":
    command.run(main)
