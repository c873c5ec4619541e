"""Measure accuracy on photographs and drawings, made from MNIST's test images.

  python -m benchmarks.handwriting --bundle outputs/NAME/bundle
  python -m benchmarks.handwriting --bundle outputs/NAME/bundle --images 1000

Without --bundle it takes the model that `python -m serve.package` would take. Every picture is a PNG or
JPEG file, decoded as the server does, with preprocess "exact" and "auto". An empty page counts as refused
if "auto" raises ImageError. Each row has its own generator, seeded with --seed. The last line on stdout is
one JSON object: accuracies, shares refused, and whether the goals are met.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.pictures import EMPTY, PICTURES, Picture
from mlp_dist.console import command
from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError, UsageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.data.arrays import ImageSet
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.tracking.load import BEST, load_model

MAX_LOSS = 0.015
"""Largest loss of accuracy on a row with `auto`, compared with the clean images."""

MODES = ("exact", "auto")
_BATCH = 500
_ROW = "{:<44} {:>8} {:>8} {:>8}"


def predict(bundle: Bundle, files: list[bytes], preprocess: str) -> torch.Tensor:
    """The most probable class of each file, int64 (N,); -1 if the file is refused."""
    reading, spec = Reading(preprocess=preprocess), bundle.spec.image
    answers = torch.full((len(files),), -1)
    pixels, places = [], []
    for place, file in enumerate(files):
        try:
            pixels.append(decode_image(file, spec, reading))
            places.append(place)
        except ImageError:
            continue
    if pixels:
        answers[places] = bundle.probabilities(torch.stack(pixels)).argmax(dim=1)
    return answers


def accuracies(
    bundle: Bundle, images: ImageSet, picture: Picture, source: np.random.Generator
) -> dict[str, float]:
    """Accuracy by mode."""
    correct = dict.fromkeys(MODES, 0)
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        files = [picture(image, source) for image in part.images[:, 0].numpy()]
        for mode in MODES:
            correct[mode] += int((predict(bundle, files, mode) == part.labels).sum())
    return {mode: number / len(images) for mode, number in correct.items()}


def row_generator(name: str, seed: int) -> np.random.Generator:
    """A row's random numbers, independent of the other rows."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.handwriting", description=__doc__)
    parser.add_argument("--bundle", default=BEST, metavar="PATH", help=f"any source of load_model ({BEST})")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="use the first N (10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), metavar="DIR")
    args = parser.parse_args()
    if not 1 <= args.images <= 10_000:
        raise UsageError(f"images is {args.images}; it must be from 1 to 10000")
    if args.seed < 0:
        raise UsageError(f"seed is {args.seed}; it must be 0 or more")
    bundle = load_model(args.bundle)
    prepare_dataset("mnist", args.data_dir)
    images = read_dataset("mnist", args.data_dir).test[: args.images]
    print(f"{bundle.spec.recipe} of {bundle.spec.dataset}, run {bundle.spec.run_id}, {len(images)} images")
    print(_ROW.format("", *MODES, "lost"), flush=True)
    rows: dict[str, dict[str, float]] = {}
    for name, picture in PICTURES.items():
        rows[name] = accuracies(bundle, images, picture, row_generator(name, args.seed))
        lost = next(iter(rows.values()))["exact"] - rows[name]["auto"]
        print(_ROW.format(name, *(f"{rows[name][mode]:.4f}" for mode in MODES), f"{lost:+.4f}"), flush=True)
    number = max(1, len(images) // 100)
    empty = {}
    for name, page in EMPTY.items():
        source = row_generator(name, args.seed)
        files = [page(source) for _ in range(number)]
        empty[name] = float((predict(bundle, files, "auto") == -1).float().mean())
    least = min(empty, key=empty.__getitem__)
    print(f"empty pages refused, {number} of each of {len(EMPTY)} kinds: {empty[least]:.2%} ({least})")
    clean, *others = rows.values()
    goals = {
        "clean": clean["auto"] == clean["exact"],
        "rows": all(clean["exact"] - row["auto"] <= MAX_LOSS for row in others),
        "empty": empty[least] == 1,
    }
    result = {"benchmark": "handwriting", "images": len(images), "seed": args.seed}
    result |= {"run_id": bundle.spec.run_id, "rows": rows, "empty": empty, "goals": goals}
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
