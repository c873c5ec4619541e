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
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks import at_least
from benchmarks.pictures import EMPTY, PICTURES
from mlp_dist.console import command
from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError, UsageError
from mlp_dist.core.image import Reading, decode_image
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.tracking.load import BEST, load_model

MAX_LOSS = 0.015
"""Largest loss of accuracy on a row with `auto`, compared with the clean images."""

LEAST_REFUSED = 0.98
"""Goal for the share of empty pages of each kind that are refused."""

CONFIDENT = 0.9
"""The probability from which a mistake counts as confident."""

MODES = ("exact", "auto")
_ROW = "{:<44} {:>8} {:>8} {:>8}"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def predict(bundle: Bundle, files: Iterable[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each file's most probable class in each of MODES, int64 (N, 2), -1 if refused; and its probability."""
    pixels, is_read = [], []
    for file in files:
        for mode in MODES:
            try:
                pixels.append(decode_image(file, bundle.spec.image, Reading(preprocess=mode)))
                is_read.append(True)
            except ImageError:
                is_read.append(False)
    answers, probabilities = torch.full((len(is_read),), -1), torch.zeros(len(is_read)).double()
    if pixels:
        places = torch.tensor(is_read)
        probabilities[places], answers[places] = bundle.probabilities(torch.stack(pixels)).max(dim=1)
    return answers.view(-1, len(MODES)), probabilities.view(-1, len(MODES))


def accuracies(answers: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy by mode."""
    return dict(zip(MODES, (answers == labels[:, None]).double().mean(dim=0).tolist(), strict=True))


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
    found = {}
    for name, files in sources(directories, bundle.spec.classes).items():
        labels = torch.tensor([label for _, label in files])
        found[name] = (labels, *predict(bundle, (path.read_bytes() for path, _ in files)))
    labels, answers, probabilities = map(torch.cat, zip(*found.values(), strict=True))
    found["all"] = labels, answers, probabilities
    rows: dict[str, dict[str, float]] = {}
    print(f"{_ROW.format('', 'images', *MODES)} {'refused':>8}")
    for name, (truth, read, _) in found.items():
        refused = int((read[:, 1] == -1).sum())
        rows[name] = {"images": len(truth), **accuracies(read, truth), "refused": refused}
        shares = (f"{rows[name][mode]:.4f}" for mode in MODES)
        print(f"{_ROW.format(name[-44:], len(truth), *shares)} {refused:>8}")
    is_read = answers[:, 1] >= 0
    is_wrong, probability = (answers[:, 1] != labels)[is_read], probabilities[is_read, 1]
    worth = {
        "mean_probability": probability.mean().item(),
        "of_read": 1 - is_wrong.double().mean().item(),
        "mistakes": int(is_wrong.sum()),
        "confident_mistakes": int((probability[is_wrong] >= CONFIDENT).sum()),
    }
    print(
        f"of {len(is_wrong)} read: mean probability {worth['mean_probability']:.4f}, "
        f"accuracy {worth['of_read']:.4f}; {worth['mistakes']} mistakes, "
        f"{worth['confident_mistakes']} at {CONFIDENT} and above"
    )
    rows["all"] |= worth
    return rows


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.handwriting", description=__doc__)
    parser.add_argument("directories", type=Path, nargs="*", metavar="DIR", help="folders of LABEL-*.png")
    parser.add_argument("--bundle", default=BEST, metavar="PATH", help=f"any source of load_model ({BEST})")
    parser.add_argument("--images", type=at_least(1), default=10_000, metavar="N", help="the first N (10000)")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="(0)")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), metavar="DIR")
    args = parser.parse_args()
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
        source = row_generator(name, args.seed)
        answers, _ = predict(bundle, (picture(image, source) for image in images.images[:, 0].numpy()))
        rows[name] = accuracies(answers, images.labels)
        lost = next(iter(rows.values()))["exact"] - rows[name]["auto"]
        print(_ROW.format(name, *(f"{rows[name][mode]:.4f}" for mode in MODES), f"{lost:+.4f}"), flush=True)
    number = max(1, len(images) // 100)
    empty = {}
    for name, page in EMPTY.items():
        source = row_generator(name, args.seed)
        answers, _ = predict(bundle, (page(source) for _ in range(number)))
        empty[name] = (answers[:, 1] == -1).double().mean().item()
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
