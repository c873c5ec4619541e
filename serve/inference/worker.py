"""The model of one TorchServe worker: a batch of requests in, JSON responses out."""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import torch

from mlp_dist import core
from mlp_dist.core.bundle import count_parameters, load_bundle
from mlp_dist.core.errors import ImageError
from serve.inference.decoding import read_batch, read_pixels
from serve.inference.explain import explain
from serve.inference.metrics import WorkerMetrics
from serve.inference.protocol import V1, Request, ResponseWriter, error_body, read_request, to_json
from serve.inference.request_errors import status_of
from serve.inference.socket_reader import install as install_socket_reader

logger = logging.getLogger(__name__)


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
        self.bundle = load_bundle(directory)
        self.bundle.check_golden()
        self.bundle.model.to(self.device)
        install_socket_reader()
        model = (context.manifest or {}).get("model", {})
        name, version = str(model.get("modelName", context.model_name)), str(model.get("modelVersion", ""))
        self.writer = ResponseWriter(self.bundle.spec.classes, name, version)
        self.metrics = WorkerMetrics(context.metrics, name, version, self.bundle.spec.classes)
        self.headers = {
            "content-type": "application/json",
            "X-Model-Name": name,
            "X-Model-Version": version,
            "X-Run-Id": self.bundle.spec.run_id,
        }

    def respond(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One JSON response per request. A bad request gets an error and a status of its own."""
        responses = [b""] * len(data)
        predictions: dict[int, Request] = {}
        errors: dict[int, ImageError] = {}
        for position, row in enumerate(data):
            for name, value in self.headers.items():
                context.set_response_header(position, name, value)
            headers = context.get_all_request_header(position)
            if headers.get("describe") == "True":
                responses[position] = to_json(self._describe())
                continue
            try:
                request = read_request(row, headers)
                if headers.get("explain") == "True":
                    responses[position] = self._explain(request)
                else:
                    predictions[position] = request
            except ImageError as error:
                errors[position] = error
        if predictions:
            errors |= self._predict(predictions, responses)
        for position, wrong in errors.items():
            status = status_of(wrong)
            context.set_response_status(status.value, status.phrase, position)
            responses[position] = error_body(wrong)
            self.metrics.count_error(wrong)
        return responses

    def _predict(self, requests: dict[int, Request], responses: list[bytes]) -> dict[int, ImageError]:
        """Fill in the responses from one forward pass; returns the errors of unreadable requests."""
        batch = read_batch(requests, self.bundle)
        if len(batch.images):
            probabilities = self.bundle.probabilities(batch.images.to(self.device)).tolist()
            self.metrics.count_predictions(probabilities)
            rows = iter(probabilities)
            for position, (number, many) in batch.shares.items():
                own = list(islice(rows, number))
                responses[position] = self.writer.write(requests[position], own, many=many)
        return batch.errors

    def _explain(self, request: Request) -> bytes:
        pixels = read_pixels(request, self.bundle)
        explained = explain(self.bundle, pixels.images)
        body = explained if pixels.many or len(explained) > 1 else explained[0]
        return to_json({"explanations": body} if request.protocol == V1 else body)

    def _describe(self) -> dict[str, Any]:
        """The answer to the management API's `?customized=true`."""
        description = self.bundle.spec.to_json()
        del description["golden_probabilities"]
        return {**description, "num_parameters": count_parameters(self.bundle)}
