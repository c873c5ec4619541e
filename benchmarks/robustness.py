"""What is lost on photographs and drawings: MNIST's test images, made into such pictures.

  python -m benchmarks.robustness --bundle outputs/NAME/bundle
  python -m benchmarks.robustness --bundle outputs/NAME/bundle --images 1000

Without --bundle the model is the one that `python -m serve.package` would take. Every picture is a PNG or
JPEG file, decoded as the server does, by preprocess "exact" and by "auto"; an empty page counts as refused
where "auto" raises ImageError. Each row draws from a generator of its own, seeded by --seed. The last line on
stdout is one JSON object: accuracies, the shares refused, and whether the goals are met.
"""

import argparse
import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from benchmarks.pictures import EMPTY, PICTURES, Page, Picture
from mlp_dist.console import command
from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError, UsageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.image_set import ImageSet
from mlp_dist.tracking.load import BEST, load_model

MOST_LOST = 0.015
"""Of the clean images' accuracy, what `auto` may lose on a row."""

MODES = ("exact", "auto")
_BATCH = 500
_ROW = "{:<44} {:>8} {:>8} {:>8}"


def answered(bundle: Bundle, files: list[bytes], preprocess: str) -> torch.Tensor:
    """The most probable class of each file, int64 (N,); -1 where it is refused."""
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
    """The share of right answers by mode."""
    right = dict.fromkeys(MODES, 0)
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        files = [picture(image, source) for image in part.images[:, 0].numpy()]
        for mode in MODES:
            right[mode] += int((answered(bundle, files, mode) == part.labels).sum())
    return {mode: number / len(images) for mode, number in right.items()}


def refused(bundle: Bundle, number: int, page: Page, source: np.random.Generator) -> float:
    """The share of empty pages that `auto` refuses."""
    files = [page(source) for _ in range(number)]
    return float((answered(bundle, files, "auto") == -1).float().mean())


def of(name: str, seed: int) -> np.random.Generator:
    """A row's source of random numbers, whichever other rows there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("--bundle", default=BEST, metavar="PATH", help=f"what load_model takes ({BEST})")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="the first N (10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument(
        "--data-dir", type=Path, default=default_data_dir(), metavar="DIR", help="($MLP_DIST_DATA, else data)"
    )
    args = parser.parse_args()
    if not 1 <= args.images <= 10_000:
        raise UsageError(f"images is {args.images}; it must be from 1 to 10000")
    if args.seed < 0:
        raise UsageError(f"seed is {args.seed}; it must be 0 or more")
    return args


def main() -> None:
    args = parse()
    bundle = load_model(args.bundle)
    prepare_dataset("mnist", args.data_dir)
    images = read_dataset("mnist", args.data_dir).test[: args.images]
    print(f"{bundle.spec.recipe} of {bundle.spec.dataset}, run {bundle.spec.run_id}, {len(images)} images")
    print(_ROW.format("", *MODES, "lost"), flush=True)
    rows: dict[str, dict[str, float]] = {}
    for name, picture in PICTURES.items():
        rows[name] = accuracies(bundle, images, picture, of(name, args.seed))
        lost = next(iter(rows.values()))["exact"] - rows[name]["auto"]
        print(_ROW.format(name, *(f"{rows[name][mode]:.4f}" for mode in MODES), f"{lost:+.4f}"), flush=True)
    number = max(1, len(images) // 100)
    empty = {name: refused(bundle, number, page, of(name, args.seed)) for name, page in EMPTY.items()}
    least = min(empty, key=empty.__getitem__)
    print(f"empty pages refused, {number} of each of {len(EMPTY)} kinds: {empty[least]:.2%} ({least})")
    clean, *others = rows.values()
    goals = {
        "clean": clean["auto"] == clean["exact"],
        "rows": all(clean["exact"] - row["auto"] <= MOST_LOST for row in others),
        "empty": empty[least] == 1,
    }
    found = {"rows": rows, "empty": empty, "goals": goals}
    shown = {"images": len(images), "seed": args.seed, "run_id": bundle.spec.run_id}
    print(json.dumps({"benchmark": "robustness", "cores": os.cpu_count(), **shown, **found}))


if __name__ == "__main__":
    command.run(main)
