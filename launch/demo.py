"""Start TorchServe with the packaged model, classify one test image, and stop the server.

  python launch/demo.py

`python -m serve.package` makes the archive.
"""

import json
import time
from pathlib import Path

from mlp_dist.console import command, progress
from serve.archive import MAR, read_archive
from serve.server import running


def main() -> None:
    parser = command.Parser(
        prog="python launch/demo.py", usage="python launch/demo.py [FLAG ...]", description=__doc__
    )
    parser.add_argument("--mar", type=Path, default=MAR, metavar="FILE", help=f"the archive ({MAR})")
    args = parser.parse_args()
    archive = read_archive(args.mar)
    with progress.stages("reading the test images"):
        from mlp_dist.core.image import encode_png
        from mlp_dist.tracking import find

        data = find.run_dataset(find.find_run(archive.spec.run_id), archive.spec)
    number = min(7, len(data.test) - 1)
    image = encode_png(data.test.images[number])
    print(f"starting TorchServe with {args.mar}", flush=True)
    started = time.perf_counter()
    with running(args.mar, archive.golden) as client:
        print(f"first answer after {time.perf_counter() - started:.1f} s")
        probabilities = client.predict(image)
    label = max(probabilities, key=probabilities.__getitem__)
    print(f"test image {number} of {data.title}")
    print(f"  true label:    {data.classes[data.test.labels[number]]}")
    print(f"  answer:        {label}")
    print(f"  probabilities: {json.dumps({name: round(value, 6) for name, value in probabilities.items()})}")


if __name__ == "__main__":
    command.run(main)
