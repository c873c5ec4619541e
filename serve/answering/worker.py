"""One worker's model: image in, class name -> probability out, a whole batch at once.

What it knows of the model it reads from the bundle beside it.
"""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mlp_dist import core
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ImageError
from serve.answering.answers import Answers, error_body, to_json
from serve.answering.errors import status_of
from serve.answering.explain import explain
from serve.answering.metrics import Metrics
from serve.answering.pixels import read_batch, read_pixels
from serve.answering.requests import V1, Request, read_request
from serve.answering.sockets import quicken

logger = logging.getLogger(__name__)


class Worker:
    """The model of the bundle in `directory`, which answers its golden image as when it was trained.

    Raises BundleError.
    """

    def __init__(self, directory: Path, context: Any) -> None:
        if not Path(core.__file__).is_relative_to(directory):
            logger.warning("mlp_dist.core comes from %s, not from the archive: see PYTHONPATH", core.__file__)
        gpu = context.system_properties.get("gpu_id")
        use_gpu = gpu is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu}" if use_gpu else "cpu")
        if not use_gpu:
            # Workers are many and a batch is small: more threads would only take each other's cores.
            torch.set_num_threads(1)
        self.bundle = load_bundle(directory)
        self.bundle.check_golden()
        self.bundle.model.to(self.device)
        quicken()
        name, version = _name_and_version(context)
        self.answers = Answers(self.bundle.spec.classes, name, version)
        self.metrics = Metrics(context.metrics, name, version, self.bundle.spec.classes)
        self.headers = {
            "content-type": "application/json",
            "X-Model-Name": name,
            "X-Model-Version": version,
            "X-Run-Id": self.bundle.spec.run_id,
        }

    def answer(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """The JSON of one answer a request: probabilities, or for a bad one an error with its own status."""
        answers = [b""] * len(data)
        asked: dict[int, Request] = {}
        errors: dict[int, ImageError] = {}
        for position, row in enumerate(data):
            for name, value in self.headers.items():
                context.set_response_header(position, name, value)
            headers = context.get_all_request_header(position)
            if headers.get("describe") == "True":
                answers[position] = to_json(self.describe())
                continue
            try:
                request = read_request(row, headers)
                if headers.get("explain") == "True":
                    answers[position] = self.explain(request)
                else:
                    asked[position] = request
            except ImageError as error:
                errors[position] = error
        if asked:
            errors |= self._answer(asked, answers)
        for position, wrong in errors.items():
            status = status_of(wrong)
            context.set_response_status(status.value, status.phrase, position)
            answers[position] = error_body(wrong)
            self.metrics.count_error(wrong)
        return answers

    def _answer(self, asked: dict[int, Request], answers: list[bytes]) -> dict[int, ImageError]:
        """The images of all requests at once, since a batch costs the model little more than one image; and
        the errors of those that cannot be read."""
        batch = read_batch(asked, self.bundle)
        if len(batch.images):
            probabilities = self.bundle.probabilities(batch.images.to(self.device)).tolist()
            self.metrics.count_answers(probabilities)
            rows = iter(probabilities)
            for position, (number, many) in batch.shares.items():
                answers[position] = self.answers.write(asked[position], list(islice(rows, number)), many=many)
        return batch.errors

    def explain(self, request: Request) -> bytes:
        """What decided the answer for each image: see serve.answering.explain."""
        pixels = read_pixels(request, self.bundle)
        explained = explain(self.bundle, pixels.images)
        listed = explained if pixels.many or len(explained) > 1 else explained[0]
        return to_json({"explanations": listed} if request.protocol == V1 else listed)

    def describe(self) -> dict[str, Any]:
        """What the management API tells of this model with `?customized=true`."""
        description = self.bundle.spec.to_json()
        del description["golden_probabilities"]
        return {**description, "num_parameters": self.bundle.spec.model.num_parameters}


def _name_and_version(context: Any) -> tuple[str, str]:
    model = (context.manifest or {}).get("model", {})
    return str(model.get("modelName", context.model_name)), str(model.get("modelVersion", ""))
