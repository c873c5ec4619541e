"""Train on sets that stay on disk, beside the same sets in memory: time and peak memory of one epoch.

  python -m benchmarks.streaming                           60 thousand, 600 thousand and 8.1 million images
  python -m benchmarks.streaming --images 60000 --rounds 5

The images are MNIST's, each shifted by up to 3 pixels and turned by up to 15 degrees at random: 6.3 GB for
8.1 million, written to a temporary directory (TMPDIR names another disk) and removed at the end. Each round
trains both, 784-500-10 in batches of 100, each in a process of its own, one after the other; the ratio is the
median over the rounds. The set lies in the page cache where that is large enough. Peak memory is VmHWM: all
pages of the process that were resident at once, libraries and test images too. The last line on stdout is one
JSON object.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.nn import functional

from mlp_dist.console import command, processes
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.data.arrays import read_arrays
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.image_set import ImageSet

RECIPE = "mnist-500"
LARGEST_SHIFT, LARGEST_TURN = 3, 15
CHUNK = 10_000
COLUMNS = "{:>10}  {:<9}  {:>18}  {:>8}  {:>14}  {:>13}"


@dataclass(frozen=True)
class Epoch:
    """`seconds` of training; `opening` those before it, in which the first round measures the set."""

    seconds: float
    opening: float
    peak_bytes: int
    test_accuracy: float


def write_set(mnist: tuple[ImageSet, ImageSet], number: int, directory: Path) -> None:
    """`number` training images made from MNIST's, and its test images, as arrays:DIR wants them."""
    train, test = mnist
    images = np.lib.format.open_memmap(
        directory / "train_images.npy", "w+", np.uint8, (number, *train.images.shape[2:])
    )
    source = torch.Generator().manual_seed(0)
    for start in range(0, number, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, number)) % len(train)
        images[start : start + CHUNK] = moved(train.images[rows], source)[:, 0].numpy()
    images.flush()
    labels = np.resize(train.labels.numpy().astype(np.uint8), number)
    np.save(directory / "train_labels.npy", labels)
    np.save(directory / "test_images.npy", test.images.numpy())
    np.save(directory / "test_labels.npy", test.labels.numpy())


def moved(images: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """uint8 images (N, 1, H, W), each shifted and turned by its own random amounts."""
    draw = torch.rand(3, len(images), generator=source) * 2 - 1
    angle = draw[0] * math.radians(LARGEST_TURN)
    # grid_sample's units: the image is 2 wide.
    x, y = draw[1:] * LARGEST_SHIFT * 2 / images.shape[-1]
    rows = torch.stack([angle.cos(), -angle.sin(), x]), torch.stack([angle.sin(), angle.cos(), y])
    grid = functional.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, align_corners=False).round_().to(torch.uint8)


def train(directory: Path, in_memory: bool) -> Epoch:
    """One epoch, as the command trains it but for MLflow."""
    from accelerate import Accelerator

    from mlp_dist.recipes import get_recipe
    from mlp_dist.training.start import settle
    from mlp_dist.training.trainer import Trainer

    processes.set_threads()
    started = time.perf_counter()
    data = read_arrays(directory, most_in_memory=2**62 if in_memory else 0)
    config, data = settle(replace(get_recipe(RECIPE), epochs=1, val_size=0), data)
    opening = time.perf_counter() - started
    with processes.StopSignals() as signals:
        trainer = Trainer(config, data, Accelerator(cpu=processes.use_cpu()), directory)
        record = trainer.train_epoch(signals)
        accuracy = trainer.evaluate()["test_accuracy"]
    return Epoch(record["train_seconds"], opening, peak_memory(), accuracy)


def peak_memory() -> int:
    """VmHWM in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def in_own_process(directory: Path, in_memory: bool) -> Epoch:
    """`train` in a new process, which ends with this call whatever interrupts it."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_send, args=(sending, directory, in_memory))
    process.start()
    sending.close()
    try:
        found: Epoch = receiving.recv()
        return found
    except EOFError as error:
        raise TrainingError(f"the process that trained on {directory} died: its output tells why") from error
    finally:
        process.kill()
        process.join()


def _train_and_send(sending: Connection, directory: Path, in_memory: bool) -> None:
    sending.send(train(directory, in_memory))


def measure(directory: Path, number: int, rounds: int) -> dict[str, list[Epoch]]:
    """Of each round the epoch from disk and, where memory is large enough, the one in memory."""
    size = (directory / "train_images.npy").stat().st_size
    kinds = {"on disk": False}
    # The set, a copy of it while validation images are held out, and the process itself.
    if 2 * size + 2**30 < psutil.virtual_memory().available:
        kinds["in memory"] = True
    found: dict[str, list[Epoch]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, in_memory in kinds.items():
            found[kind].append(in_own_process(directory, in_memory))
    return found


def ratio(found: dict[str, list[Epoch]]) -> float | None:
    """Seconds from disk over seconds in memory."""
    if "in memory" not in found:
        return None
    pairs = zip(found["on disk"], found["in memory"], strict=True)
    return statistics.median(stored.seconds / held.seconds for stored, held in pairs)


def show(number: int, found: dict[str, list[Epoch]]) -> None:
    for kind, epochs in found.items():
        against = ratio(found) if kind == "on disk" else None
        print(
            COLUMNS.format(
                f"{number:,}",
                kind,
                f"{statistics.median(epoch.seconds for epoch in epochs) * 1e6 / number:.2f}",
                "-" if against is None else f"{against:.3f}",
                f"{max(epoch.peak_bytes for epoch in epochs) / 2**20:,.0f} MiB",
                f"{statistics.median(epoch.test_accuracy for epoch in epochs):.4f}",
            ),
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", metavar="N", default=[60_000, 600_000, 8_100_000])
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="epochs of each kind (3)")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        raise UsageError(f"rounds is {args.rounds}; it must be 1 or more")
    if min(args.images) < 1000:
        raise UsageError(f"images is {min(args.images)}; it must be 1000 or more")
    needed, free = max(args.images) * 785 + 2**28, shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise UsageError(
            f"{max(args.images):,} images need {needed / 1e9:.1f} GB, but {tempfile.gettempdir()} has "
            f"{free / 1e9:.1f} GB free; name another directory with TMPDIR, or fewer images"
        )
    return args


def main() -> None:
    args = parse()
    data_dir = args.data_dir or default_data_dir()
    prepare_dataset("mnist", data_dir)
    mnist = read_dataset("mnist", data_dir)
    print(COLUMNS.format("images", "kept", "s a million images", "ratio", "peak memory", "test accuracy"))
    rows = []
    for number in args.images:
        with tempfile.TemporaryDirectory(prefix="streaming-") as name:
            os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
            directory = Path(name, "set")
            directory.mkdir()
            write_set((mnist.train, mnist.test), number, directory)
            found = measure(directory, number, args.rounds)
        show(number, found)
        epochs = {kind: [asdict(epoch) for epoch in epochs] for kind, epochs in found.items()}
        rows.append({"images": number, "ratio": ratio(found), **epochs})
    result = {"benchmark": "streaming", "cores": os.cpu_count(), "torch": torch.__version__, "sets": rows}
    print(json.dumps(result, default=str))


if __name__ == "__main__":
    command.run(main)
