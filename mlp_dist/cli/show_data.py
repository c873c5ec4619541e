"""Show random training images of a data set with their labels.

  python -m mlp_dist.show_data                                                  in a window
  python -m mlp_dist.show_data --output samples.png                             in a file
  python -m mlp_dist.show_data --dataset digits --seed 1 --output digits.png    other images

The number of images and the classes are printed.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.config import check_dataset_name
from mlp_dist.console import command, progress
from mlp_dist.core.errors import UsageError

if TYPE_CHECKING:
    from mlp_dist.data.image_set import Dataset

_MOST_NAMES = 10


def _parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m mlp_dist.show_data",
        usage="python -m mlp_dist.show_data [FLAG ...]",
        description=__doc__,
    )
    datasets = "mnist (default), fashion_mnist, kmnist, digits, folder:DIR or arrays:DIR"
    data_dir = "torchvision's root ($MLP_DIST_DATA, else data)"
    size = "resize images to N x N pixels (28)"
    add = parser.add_argument_group("data and picture").add_argument
    add("--dataset", default="mnist", metavar="NAME", help=datasets)
    add("--data-dir", type=Path, metavar="DIR", help=data_dir)
    add("--image-size", type=int, default=28, metavar="N", help=size)
    add("--skip-bad-images", action="store_true", help="skip files of a folder that cannot be read")
    add("--seed", type=int, default=0, metavar="N", help="selects the images (0)")
    add("--output", type=Path, metavar="FILE", help="write a picture, PNG or as the suffix says")
    args = parser.parse_args()
    check_dataset_name(args.dataset)
    if args.image_size < 1:
        raise UsageError(f"image-size is {args.image_size}; it must be 1 or more pixels")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"seed is {args.seed}; it must be from 0 to 2^63 - 1")
    return args


def _summary(data: "Dataset") -> str:
    image, names = data.image, ", ".join(data.classes[:_MOST_NAMES])
    return (
        f"{data.title}: {len(data.train):,} training and {len(data.test):,} test images of "
        f"{image.height}x{image.width} pixels, {'gray' if image.channels == 1 else 'RGB'}; "
        f"{len(data.classes)} classes: {names}{', ...' if len(data.classes) > _MOST_NAMES else ''}"
    )


def main() -> None:
    args = _parse()
    # These imports take seconds; wrong flags are reported before.
    with progress.stages("starting"):
        import torch

        from mlp_dist.data.batches import generator
        from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
        from mlp_dist.tracking import plots

    if args.output is None:
        plots.check_window()
    else:
        plots.file_format(args.output)
    data_dir = args.data_dir or default_data_dir()
    prepare_dataset(args.dataset, data_dir)
    data = read_dataset(
        args.dataset, data_dir, image_size=args.image_size, skip_bad_images=args.skip_bad_images
    )
    number = plots.ROWS * plots.COLUMNS
    chosen = data.train[torch.randperm(len(data.train), generator=generator(args.seed))[:number]]
    figure = plots.samples_grid(chosen.images, chosen.labels, data.classes)
    if args.output is None:
        print(_summary(data), flush=True)
        plots.show(figure)
    else:
        plots.save(figure, args.output)
        print(f"{args.output}: {_summary(data)}")


if __name__ == "__main__":
    command.run(main)
