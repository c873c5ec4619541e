"""Measure accuracy on photographs and drawings: your own files, or pictures made from MNIST's test images.

  python -m benchmarks.handwriting --bundle outputs/NAME/bundle DIR...
  python -m benchmarks.handwriting --bundle outputs/NAME/bundle --images 1000

Without --bundle it takes the model that `python -m serve.package` would take. Every picture is decoded as
the server does, with preprocess "exact" and "auto". In each DIR and below it, a folder with images named
LABEL-ANYTHING is one source, with a row of its own. The last row compares the mean probability of the answers
with their accuracy, and counts confident mistakes.

Without DIR each row is made from MNIST's test images, with its own generator, seeded with --seed. Pictures
and empty pages are refused if "auto" raises ImageError. The last line on stdout is one JSON object:
accuracies, numbers or shares refused, and, without DIR, whether the goals are met.
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

LEAST_REFUSED = 0.98
"""Goal for the share of empty pages of each kind that are refused."""

CONFIDENT = 0.9
"""The probability from which a mistake counts as confident."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def predict(bundle: Bundle, files: list[bytes], preprocess: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable class of each file, int64 (N,), and its probability, float64 (N,); -1 if refused."""
    reading, spec = Reading(preprocess=preprocess), bundle.spec.image
    answers, probabilities = torch.full((len(files),), -1), -torch.ones(len(files)).double()
    pixels, places = [], []
    for place, file in enumerate(files):
        try:
            pixels.append(decode_image(file, spec, reading))
            places.append(place)
        except ImageError:
            continue
    if pixels:
        probabilities[places], answers[places] = bundle.probabilities(torch.stack(pixels)).max(dim=1)
    return answers, probabilities


def accuracies(
    bundle: Bundle, images: ImageSet, picture: Picture, source: np.random.Generator
) -> dict[str, float]:
    """Accuracy by mode."""
    correct = dict.fromkeys(MODES, 0)
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        files = [picture(image, source) for image in part.images[:, 0].numpy()]
        for mode in MODES:
            correct[mode] += int((predict(bundle, files, mode)[0] == part.labels).sum())
    return {mode: number / len(images) for mode, number in correct.items()}


def row_generator(name: str, seed: int) -> np.random.Generator:
    """A row's random numbers, independent of the other rows."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def sources(directories: list[Path], classes: tuple[str, ...]) -> dict[str, list[tuple[Path, int]]]:
    """Files and labels by folder. Raises UsageError if there are none, or for names without a class."""
    found: dict[str, list[tuple[Path, int]]] = {}
    for directory in directories:
        files = [path for path in sorted(directory.rglob("*")) if path.suffix.lower() in _SUFFIXES]
        if not files:
            raise UsageError(f"no images in {directory}; it needs files such as NAME/{classes[0]}-1.png")
        for path in files:
            label = path.name.split("-")[0]
            if label not in classes:
                raise UsageError(
                    f"{path}: the name must begin with a class and '-', such as {classes[0]}-1.png; "
                    f"the model's classes are {', '.join(classes)}"
                )
            found.setdefault(str(path.parent), []).append((path, classes.index(label)))
    return found


def measure_sources(bundle: Bundle, directories: list[Path]) -> dict[str, dict[str, float]]:
    """Print a table and return the number of images, accuracies and refusals by source, and of all."""
    row = "{:<44} {:>8} {:>8} {:>8} {:>8}"
    print(row.format("", "images", *MODES, "refused"), flush=True)
    counts: dict[str, list[int]] = {}
    read = []
    for name, files in sources(directories, bundle.spec.classes).items():
        data, labels = [path.read_bytes() for path, _ in files], torch.tensor([label for _, label in files])
        (plain, _), (framed, probability) = (predict(bundle, data, mode) for mode in MODES)
        correct = [int((answers == labels).sum()) for answers in (plain, framed)]
        counts[name] = [len(files), *correct, int((framed == -1).sum())]
        read.append(torch.stack([probability, (framed == labels).double()], dim=1)[framed >= 0])
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows: dict[str, dict[str, float]] = {}
    for name, (images, exact, auto, refused) in counts.items():
        rows[name] = {"images": images, "exact": exact / images, "auto": auto / images, "refused": refused}
        print(row.format(name[-44:], images, f"{exact / images:.4f}", f"{auto / images:.4f}", refused))
    probabilities, is_correct = torch.cat(read).T
    wrong = probabilities[is_correct == 0]
    rows["all"] |= {"mean_probability": probabilities.mean().item(), "of_read": is_correct.mean().item()}
    rows["all"] |= {"mistakes": len(wrong), "confident_mistakes": int((wrong >= CONFIDENT).sum())}
    print(
        "of {} read: mean probability {mean_probability:.4f}, accuracy {of_read:.4f}; {mistakes} mistakes, "
        "{confident_mistakes} at {} and above".format(
            len(wrong) + int(is_correct.sum()), CONFIDENT, **rows["all"]
        )
    )
    return rows


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.handwriting", description=__doc__)
    parser.add_argument("directories", type=Path, nargs="*", metavar="DIR", help="folders of LABEL-*.png")
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
    if args.directories:
        rows = measure_sources(bundle, args.directories)
        print(json.dumps({"benchmark": "handwriting", "run_id": bundle.spec.run_id, "sources": rows}))
        return
    prepare_dataset("mnist", args.data_dir)
    images = read_dataset("mnist", args.data_dir).test[: args.images]
    print(f"{bundle.spec.recipe} of {bundle.spec.dataset}, run {bundle.spec.run_id}, {len(images)} images")
    print(_ROW.format("", *MODES, "lost"), flush=True)
    rows = {}
    for name, picture in PICTURES.items():
        rows[name] = accuracies(bundle, images, picture, row_generator(name, args.seed))
        lost = next(iter(rows.values()))["exact"] - rows[name]["auto"]
        print(_ROW.format(name, *(f"{rows[name][mode]:.4f}" for mode in MODES), f"{lost:+.4f}"), flush=True)
    number = max(1, len(images) // 100)
    empty = {}
    for name, page in EMPTY.items():
        source = row_generator(name, args.seed)
        files = [page(source) for _ in range(number)]
        empty[name] = float((predict(bundle, files, "auto")[0] == -1).float().mean())
    least = min(empty, key=empty.__getitem__)
    print(f"empty pages refused, {number} of each of {len(EMPTY)} kinds: {empty[least]:.2%} ({least})")
    clean, *others = rows.values()
    goals = {
        "clean": clean["auto"] == clean["exact"],
        "rows": all(clean["exact"] - row["auto"] <= MAX_LOSS for row in others),
        "empty": empty[least] >= LEAST_REFUSED,
    }
    result = {"benchmark": "handwriting", "images": len(images), "seed": args.seed}
    result |= {"run_id": bundle.spec.run_id, "rows": rows, "empty": empty, "goals": goals}
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
