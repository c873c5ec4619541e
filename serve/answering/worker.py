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
from serve.answering.pixels import Pixels, read_pixels, together
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
        asked: dict[int, tuple[Request, Pixels]] = {}
        for position, row in enumerate(data):
            for name, value in self.headers.items():
                context.set_response_header(position, name, value)
            headers = context.get_all_request_header(position)
            if headers.get("describe") == "True":
                answers[position] = to_json(self.describe())
                continue
            try:
                request = read_request(row, headers)
                pixels = read_pixels(request, self.bundle)
                if headers.get("explain") == "True":
                    answers[position] = self.explain(request, pixels)
                else:
                    asked[position] = request, pixels
            except ImageError as error:
                status = status_of(error)
                context.set_response_status(status.value, status.phrase, position)
                answers[position] = error_body(error)
                self.metrics.count_error(error)
        if asked:
            self._answer(asked, answers)
        return answers

    def _answer(self, asked: dict[int, tuple[Request, Pixels]], answers: list[bytes]) -> None:
        """The images of all requests at once, since a batch costs the model little more than one image."""
        images = together([pixels.images for _, pixels in asked.values()]).to(self.device)
        probabilities = self.bundle.probabilities(images).tolist()
        self.metrics.count_answers(probabilities)
        rows = iter(probabilities)
        for position, (request, pixels) in asked.items():
            own = list(islice(rows, len(pixels.images)))
            answers[position] = self.answers.write(request, own, many=pixels.many)

    def explain(self, request: Request, pixels: Pixels) -> bytes:
        """What decided the answer for each image: see serve.answering.explain."""
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
