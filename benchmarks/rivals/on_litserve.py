"""The model behind LitServe: `python -m benchmarks.rivals.on_litserve PORT BUNDLE`.

With batches and its quicker queue, one process that holds the model and one that speaks HTTP.
"""

import sys
from pathlib import Path
from typing import Annotated

import litserve
import torch
from fastapi import Body, HTTPException

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import decode_image

BATCH, DELAY = 64, 0.001
"""The largest batch, and the seconds that a request waits for one."""


class Perceptron(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, directory: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=DELAY, api_path="/predictions/mlp")
        self.directory = directory

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.bundle = load_bundle(self.directory)

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> torch.Tensor:
        try:
            return decode_image(request, self.bundle.spec.image)
        except ImageError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, pixels: torch.Tensor) -> list[list[float]]:
        rows: list[list[float]] = self.bundle.probabilities(pixels).tolist()
        return rows

    def unbatch(self, rows: list[list[float]]) -> list[list[float]]:
        return rows

    def encode_response(self, row: list[float]) -> dict[str, float]:
        return dict(zip(self.bundle.spec.classes, row, strict=True))


if __name__ == "__main__":
    server = litserve.LitServer(
        Perceptron(Path(sys.argv[2])), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
