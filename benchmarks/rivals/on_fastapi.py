"""The model behind FastAPI: `python -m benchmarks.rivals.on_fastapi PORT BUNDLE`.

On uvicorn with uvloop and httptools; answers are computed in the event loop, quicker than in threads.
"""

import json
import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from mlp_dist.core.bundle import Bundle, load_bundle
from mlp_dist.core.errors import ImageError


def application(bundle: Bundle) -> FastAPI:
    app = FastAPI()

    @app.post("/predictions/mlp")
    async def predict(request: Request) -> Response:
        try:
            answer = bundle.answer(await request.body())
        except ImageError as error:
            raise HTTPException(400, str(error)) from error
        return Response(json.dumps(answer), media_type="application/json")

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(
        application(load_bundle(Path(sys.argv[2]))),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
    )
