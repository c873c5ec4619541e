"""How long a folder of images takes to start with: the first time, when it is decoded, and from then on.

  python -m benchmarks.folders                    60,000 PNG files of 28x28, 5,000 JPEG files of 300x200
  python -m benchmarks.folders --scale 0.1        a tenth of them

The files are written to a temporary directory and lie in the page cache. The last line on stdout is one JSON
object; seconds are those of read_dataset.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mlp_dist.console import command
from mlp_dist.core.errors import UsageError
from mlp_dist.data.datasets import read_dataset

CASES = (("PNG", 60_000, (28, 28), "L"), ("JPEG", 5_000, (300, 200), "RGB"))
NUM_CLASSES = 10


def write_images(root: Path, kind: str, number: int, size: tuple[int, int], mode: str) -> None:
    """`number` files with soft shapes in them, as digits and photographs have."""
    draw = np.random.default_rng(0)
    for index in range(number):
        folder = root / f"class {index % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
        image.save(folder / f"{index}.{kind.lower()}")


def seconds_to_read(root: Path) -> float:
    started = time.perf_counter()
    read_dataset(f"folder:{root}", root)
    return time.perf_counter() - started


def main() -> None:
    parser = command.Parser(
        prog="python -m benchmarks.folders",
        description=__doc__,
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="times the numbers of files (1)"
    )
    args = parser.parse_args()
    if not 0.001 <= args.scale <= 100:
        raise UsageError(f"scale is {args.scale:g}; it must be from 0.001 to 100")
    rows = []
    print(f"{'files':<32} {'first start':>12} {'second start':>13}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        for kind, number, size, mode in CASES:
            number = round(number * args.scale)
            write_images(Path(name, kind), kind, number, size, mode)
            first, second = (seconds_to_read(Path(name, kind)) for _ in range(2))
            files = f"{number:,} {kind} of {size[0]}x{size[1]}"
            print(f"{files:<32} {first:>10.2f} s {second:>11.2f} s", flush=True)
            rows.append({"files": number, "format": kind, "size": size, "first": first, "second": second})
    print(json.dumps({"benchmark": "folders", "cores": os.cpu_count(), "cases": rows}))


if __name__ == "__main__":
    command.run(main)
