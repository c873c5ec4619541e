"""A real TorchServe against everything that people and machines may send it, from many connections at once.

  python -m tests.helpers.fuzz                    500 requests
  python -m tests.helpers.fuzz --inputs 10000     counts by kind and status; the last line is JSON

Two thirds of the requests are wrong in some way; no worker may die of them, none of them may be answered
with a status of 500 or above, and no good image between them may get an error or another image's answer.
TorchServe's HTTP library answers some damaged forms by itself, with 500: these are counted apart.
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
from serve.torchserve.keys import read_key
from serve.package import build_archive
from serve.server import running
from tests.helpers.asking import write_bundle
from tests.helpers.fuzz_inputs import DAMAGED, HUGE, Input, good_images, inputs

CONNECTIONS = 8
TIMEOUT = 60.0

REFUSED = (400, 413, 415)
BY_TORCHSERVE = (413, 417)
"""What its HTTP server answers by itself, without a word, to bodies and expectations that it cannot meet."""


class Fuzzer:
    """Sends inputs from several threads; what it finds is in `problems` and in `statuses`, by kind."""

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
                problem = self._ask(connection, each)
            except (OSError, http.client.HTTPException) as error:
                # TorchServe hangs up on a head that is too large, whether its refusal was read or not.
                problem = None if each.kind == HUGE else f"no answer: {error!r}"
                connection.close()
                connection = self._connect()
            except ValueError as error:
                problem = f"an answer that is no JSON: {error!r}"
            if problem:
                with self._lock:
                    sent = f"{each.content_type} {each.headers and list(each.headers)} {each.body[:60]!r}"
                    self.problems.append(f"{each.kind}: {problem}; sent {len(each.body)} bytes, {sent}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.client.url).netloc, timeout=TIMEOUT)

    def _ask(self, connection: http.client.HTTPConnection, each: Input) -> str | None:
        headers = {**each.headers, "Authorization": f"Bearer {self.key}"}
        if each.content_type:
            headers["Content-Type"] = each.content_type
        connection.request("POST", each.path, each.body, headers)
        answer = connection.getresponse()
        body, status = answer.read(), answer.status
        with self._lock:
            self.statuses[each.kind, status] += 1
        if b'"error"' not in body and status != 200:
            # What TorchServe refuses before the handler sees it, it may not have read to its end.
            connection.close()
        if each.kind == DAMAGED and status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return None if body.startswith(b'{\n  "code": 500') else f"status 500: {body[:200]!r}"
        if each.image is None and (status in REFUSED or (status in BY_TORCHSERVE and not body)):
            return self._check_refusal(status, body)
        if status != 200:
            return f"status {status}: {body[:200]!r}"
        found = json.loads(body, parse_constant=lambda name: name)
        return None if each.image is None else self._check_answer(found, self.expected[each.image])

    def _check_refusal(self, status: int, body: bytes) -> str | None:
        if status in BY_TORCHSERVE and not body:
            return None
        values = json.loads(body)
        own = values.get("error", {})
        told = (set(own) == {"type", "message"} and own["message"]) or values.get("message")
        return None if told else f"status {status} without a reason: {body[:200]!r}"

    def _check_answer(self, found: Any, expected: dict[str, float]) -> str | None:
        if "outputs" in found:
            labels, values = (each["data"] for each in found["outputs"])
            found = dict(zip(labels, values, strict=True))
        elif "predictions" in found:
            [found] = found["predictions"]
        if set(found) != set(expected):
            return f"the classes are {sorted(found)}"
        worst = max(abs(found[name] - expected[name]) for name in expected)
        return None if worst <= 2e-6 else f"the answer is off by {worst}"


def workers(client: Client) -> list[dict[str, Any]]:
    """What TorchServe says of its workers: each one's process id, and since when it runs."""
    assert client.key_file is not None
    key = read_key(client.key_file, "management").value
    connection = http.client.HTTPConnection(urlsplit(client.management).netloc, timeout=TIMEOUT)
    connection.request("GET", f"/models/{client.model}", headers={"Authorization": f"Bearer {key}"})
    [model] = json.loads(connection.getresponse().read())
    connection.close()
    return [{name: worker[name] for name in ("id", "pid", "startTime")} for worker in model["workers"]]


def fuzz(client: Client, bundle: Path, number: int, seed: int) -> Fuzzer:
    """Ask the server of `client`, which serves what is in `bundle`."""
    random = np.random.default_rng(seed)
    files = good_images(random)
    model = load_bundle(bundle)
    before = workers(client)
    fuzzer = Fuzzer(client, [model.answer(file) for file in files])
    fuzzer.send(list(inputs(number, files, random)))
    after = workers(client)
    if before != after:
        fuzzer.problems.append(f"workers died: there were {before}, there are {after}")
    return fuzzer


def main() -> int:
    parser = command.Parser(prog="python -m tests.helpers.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=500, metavar="N", help="requests to send (500)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="what they are drawn from (0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlp-fuzz-") as name:
        directory = Path(name)
        # What weights there are makes no difference to what the server is asked here.
        bundle = write_bundle(directory / "bundle", preprocess="auto")
        mar = build_archive(bundle, "mlp", "1", directory)
        with running(mar, (bundle / "golden.png").read_bytes()) as client:
            fuzzer = fuzz(client, bundle, args.inputs, args.seed)
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
