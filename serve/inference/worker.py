"""The model of one TorchServe worker: a batch of requests in, JSON responses out."""

import logging
import os
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch

from mlp_dist import core
from mlp_dist.core.bundle import count_parameters, load_bundle
from mlp_dist.core.errors import ImageError
from serve.inference.answers import ResponseWriter, error_body, to_json
from serve.inference.decoding import Decoder, concatenated
from serve.inference.explain import explain
from serve.inference.limits import Budget, late_error, status_of
from serve.inference.metrics import WorkerMetrics
from serve.inference.protocol import V1, Request, read_request
from serve.inference.socket_reader import install as install_socket_reader

logger = logging.getLogger(__name__)

_SMALL_BODY = 2**16
"""Bytes of a request that is always parsed."""


class Worker:
    """Loads the bundle in `directory`. Raises BundleError unless it gives the golden image's answer."""

    def __init__(self, directory: Path, context: Any) -> None:
        if not Path(core.__file__).is_relative_to(directory):
            logger.warning(
                "mlp_dist.core comes from %s, not from the archive; check PYTHONPATH", core.__file__
            )
        gpu = context.system_properties.get("gpu_id")
        use_gpu = gpu is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu}" if use_gpu else "cpu")
        if not use_gpu:
            # Batches are small: more threads would compete with other workers and TorchServe for the cores.
            torch.set_num_threads(1)
        cv2.setNumThreads(1)
        # TorchServe would parse JSON before the handler can limit its size.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        self.bundle = load_bundle(directory)
        self.bundle.check_golden()
        self.bundle.model.to(self.device)
        self.decoder = Decoder(self.bundle)
        install_socket_reader()
        model = (context.manifest or {}).get("model", {})
        name, version = str(model.get("modelName", context.model_name)), str(model.get("modelVersion", ""))
        self.writer = ResponseWriter(self.bundle.spec.classes, name, version)
        self.metrics = WorkerMetrics(context.metrics, name, version, self.bundle.spec.classes)
        # TorchServe's management API sends "True", and serve/nginx.conf "KServe".
        self.descriptions = {"True": self._describe, "KServe": self.writer.metadata}
        self.headers = {
            "content-type": "application/json",
            "X-Model-Name": name,
            "X-Model-Version": version,
            "X-Run-Id": self.bundle.spec.run_id,
        }

    def respond(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One response per request. A bad request gets an error and a status of its own."""
        headers = [_headers(context, position) for position in range(len(data))]
        budget = Budget(exceptions=self.decoder.num_threads if len(data) == 1 else 1)
        requests = self._read(data, headers, budget)
        self.decoder.decode([request for request in requests if request.parts and not request.error], budget)
        read = [request for request in requests if request.pixels is not None]
        self._predict([request for request in read if not request.explain])
        self._explain([request for request in read if request.explain], budget)
        for position, request in enumerate(requests):
            own = request.response_headers
            for name, value in (self.headers | own if own else self.headers).items():
                context.set_response_header(position, name, value)
            if request.error is not None:
                status = status_of(request.error)
                context.set_response_status(status.value, status.phrase, position)
                request.response = error_body(request.error, request.protocol)
                self.metrics.count_error(request.error)
        return [request.response for request in requests]

    def _read(
        self, data: list[dict[str, Any]], headers: list[dict[str, str]], budget: Budget
    ) -> list[Request]:
        """Parse small requests first, and large ones while there is time."""
        requests: dict[int, Request] = {}
        sizes = [sum(map(len, row.values())) for row in data]
        for position in sorted(range(len(data)), key=sizes.__getitem__):
            described = headers[position].get("describe")
            if described in self.descriptions:
                requests[position] = Request(response=to_json(self.descriptions[described]()))
            elif sizes[position] > _SMALL_BODY and budget.is_spent:
                requests[position] = Request(error=late_error(1, 0, 0))
            else:
                requests[position] = read_request(data[position], headers[position])
        return [requests[position] for position in range(len(data))]

    def _predict(self, requests: list[Request]) -> None:
        """Fill in the responses from one forward pass."""
        pixels = [request.pixels for request in requests if request.pixels is not None]
        if pixels:
            probabilities = self.bundle.probabilities(concatenated(pixels).to(self.device)).tolist()
            self.metrics.count_predictions(probabilities)
            rows = iter(probabilities)
            for request, images in zip(requests, pixels, strict=True):
                self.writer.write(request, list(islice(rows, images.shape[0])))

    def _explain(self, requests: list[Request], budget: Budget) -> None:
        """Fill in explanations, one at least, and others while there is time."""
        for number, request in enumerate(requests):
            assert request.pixels is not None
            try:
                if number and budget.is_spent:
                    raise late_error(len(request.pixels), 0, 0)
                explained = explain(self.bundle, request.pixels, budget)
            except ImageError as error:
                request.error = error
            else:
                body = explained if request.many or len(explained) > 1 else explained[0]
                request.response = to_json({"explanations": body} if request.protocol == V1 else body)

    def _describe(self) -> dict[str, Any]:
        """The answer to the management API's `?customized=true`."""
        description = self.bundle.spec.to_json()
        del description["golden_probabilities"]
        return {**description, "num_parameters": count_parameters(self.bundle)}


def _headers(context: Any, position: int) -> dict[str, str]:
    """A request's headers in lower case. TorchServe mixes them with dicts for a form's fields."""
    found = context.get_all_request_header(position).items()
    return {name.lower(): value for name, value in found if isinstance(value, str)}
