"""Show training images of a data set, chosen at random, with their labels.

  python -m mlp_dist.show_data                                                  in a window
  python -m mlp_dist.show_data --output samples.png                             in a file
  python -m mlp_dist.show_data --dataset digits --seed 1 --output digits.png    of others, others

In the terminal it says how many images and which classes there are.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.config import check_dataset_name
from mlp_dist.console import command, progress
from mlp_dist.core.errors import UsageError

if TYPE_CHECKING:
    from mlp_dist.data.image_set import Dataset

ROWS, COLUMNS = 4, 5
MOST_NAMES = 10


def parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m mlp_dist.show_data",
        usage="python -m mlp_dist.show_data [FLAG ...]",
        description=__doc__,
    )
    what = parser.add_argument_group("what is shown")
    what.add_argument(
        "--dataset",
        default="mnist",
        metavar="NAME",
        help="mnist (the default), fashion_mnist, kmnist, digits, folder:DIR or arrays:DIR",
    )
    what.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    what.add_argument(
        "--image-size",
        type=int,
        default=28,
        metavar="N",
        help="height and width in pixels that the images are resized to (28)",
    )
    what.add_argument(
        "--skip-bad-images", action="store_true", help="leave out the files of a folder that cannot be read"
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="which images are chosen (0)")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--output", type=Path, metavar="FILE", help="PNG, or what the suffix says (a window, and no file)"
    )
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    check_dataset_name(args.dataset)
    if args.image_size < 1:
        raise UsageError(f"image-size is {args.image_size}; it must be 1 or more pixels")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"seed is {args.seed}; it must be from 0 to 2^63 - 1")


def facts(data: "Dataset") -> str:
    """Title, numbers of images, image size and classes, in one line."""
    image, names = data.image, ", ".join(data.classes[:MOST_NAMES])
    return (
        f"{data.title}: {len(data.train):,} training and {len(data.test):,} test images of "
        f"{image.height}x{image.width} pixels, {'gray' if image.channels == 1 else 'RGB'}; "
        f"{len(data.classes)} classes: {names}{', ...' if len(data.classes) > MOST_NAMES else ''}"
    )


def main() -> None:
    args = parse()
    check(args)
    # torch and matplotlib take seconds to import; a wrong flag is told before.
    with progress.stages("starting"):
        import torch

        from mlp_dist.data.batches import generator
        from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
        from mlp_dist.tracking import plots as figures

    # Reading takes longer still.
    if args.output is None:
        figures.check_window()
    else:
        figures.picture_format(args.output)
    data_dir = args.data_dir or default_data_dir()
    prepare_dataset(args.dataset, data_dir)
    data = read_dataset(
        args.dataset, data_dir, image_size=args.image_size, skip_bad_images=args.skip_bad_images
    )
    chosen = data.train[torch.randperm(len(data.train), generator=generator(args.seed))[: ROWS * COLUMNS]]
    figure = figures.samples_grid(chosen.images, chosen.labels, data.classes, rows=ROWS, columns=COLUMNS)
    if args.output is None:
        print(facts(data), flush=True)
        figures.show(figure)
    else:
        figures.save(figure, args.output)
        print(f"{args.output}: {facts(data)}")


if __name__ == "__main__":
    command.run(main)
