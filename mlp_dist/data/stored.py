"""Images and labels that stay on disk, in two .npy files: rows are read when they are asked for.

They are read by preadv, not by mapping the files: the pages of a mapping count as the process's memory, and
where the page cache keeps a file in large folios, to touch one row maps a megabyte.
"""

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mlp_dist.core.errors import DataError
from mlp_dist.data.image_set import ImageSet

Integers = npt.NDArray[np.int64]
Locate = Callable[[Integers], Integers]
"""Positions in a set -> rows of its files."""

_GAP_BYTES = 4096
"""What lies between two rows is read with them where it is no more than this."""


class StoredArray:
    """A .npy file of N rows, open for reading until nobody holds this any more.

    Raises DataError where there is none, or one that is cut short or of Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # The mapping is for numpy's check of header and length, and ends here.
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged or no array that numpy.save wrote: {error}") from error
        weakref.finalize(self, os.close, self._file)
        if not isinstance(mapped, np.memmap) or mapped.ndim == 0 or not mapped.flags.c_contiguous:
            raise DataError(f"{path} is not one array in C order; write it with numpy.save")
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[np.generic] = mapped.dtype
        self._offset = mapped.offset
        self.row_bytes: int = max(1, int(np.prod(mapped.shape[1:])) * mapped.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, first: int, rows: npt.NDArray[np.generic]) -> None:
        """Fill `rows`, C-contiguous and of this array's dtype, with those from `first` on."""
        left = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        offset = self._offset + first * self.row_bytes
        while left:
            try:
                number = os.preadv(self._file, [left], offset)
            except OSError as error:
                raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
            if number == 0:
                raise DataError(f"{self.path} has become shorter since it was opened; restore it, and go on")
            left, offset = left[number:], offset + number

    def gather(self, runs: "Runs") -> npt.NDArray[np.generic]:
        """The rows that `runs` was made for, in the order in which they were asked for."""
        found = np.empty((runs.total, *self.shape[1:]), self.dtype)
        place = 0
        for first, number in zip(runs.firsts.tolist(), runs.numbers.tolist(), strict=True):
            self.read(first, found[place : place + number])
            place += number
        # numpy.take lets other threads run, which indexing does not.
        return found if runs.in_order else np.take(found, runs.places, axis=0)


class Runs:
    """The stretches of a file to be read for `rows` (N,), in any order, and where in them each row is."""

    def __init__(self, rows: Integers, *, gap: int) -> None:
        ordered = np.sort(rows)
        breaks = np.flatnonzero(np.diff(ordered) > gap + 1)
        self.firsts = ordered[np.append(0, breaks + 1)] if len(rows) else ordered
        lasts = ordered[np.append(breaks, len(rows) - 1)] if len(rows) else ordered
        self.numbers = lasts - self.firsts + 1
        self.total = int(self.numbers.sum())
        starts = np.cumsum(self.numbers) - self.numbers
        run = np.searchsorted(self.firsts, rows, side="right") - 1
        self.places = rows - self.firsts[run] + starts[run]
        self.in_order = self.total == len(rows) and bool((np.diff(rows) == 1).all())


class StoredSet(ImageSet):
    """uint8 images (N, C, H, W) or (N, H, W) and integer labels (N,) in files, given out as an ImageSet's.

    Indexed by a slice it is a StoredSet again, by int64 positions (B,) an ImageSet on the CPU; streaming.py's
    `fetched` reads ahead. `images` and `labels` read all of them. All but indexing brings them to `device`.

    Raises DataError, when indexed, where a file cannot be read any more.
    """

    stored_images: StoredArray
    stored_labels: StoredArray
    locate: Locate | None
    span: range
    device: torch.device | str

    def __init__(
        self,
        stored_images: StoredArray,
        stored_labels: StoredArray,
        locate: Locate | None = None,
        span: range | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        span = range(len(stored_labels)) if span is None else span
        # The base class lets nobody set what it is made of.
        vars(self).update(
            stored_images=stored_images, stored_labels=stored_labels, locate=locate, span=span, device=device
        )

    @property
    def images(self) -> torch.Tensor:
        return self._read(np.arange(len(self))).images.to(self.device)

    @property
    def labels(self) -> torch.Tensor:
        rows = self._rows(np.arange(len(self)))
        runs = Runs(rows, gap=_GAP_BYTES // self.stored_labels.row_bytes)
        return _int64(self.stored_labels.gather(runs)).to(self.device)

    @property
    def image_bytes(self) -> int:
        return self.stored_images.row_bytes

    def __len__(self) -> int:
        return len(self.span)

    def to(self, device: torch.device | str) -> "StoredSet":
        return StoredSet(self.stored_images, self.stored_labels, self.locate, self.span, device)

    def located(self, locate: Locate, number: int) -> "StoredSet":
        """The `number` images whose positions in this set `locate` gives."""
        return StoredSet(
            self.stored_images,
            self.stored_labels,
            lambda positions: self._rows(locate(positions)),
            range(number),
            self.device,
        )

    def __getitem__(self, index: torch.Tensor | slice) -> ImageSet:
        if isinstance(index, slice):
            return StoredSet(
                self.stored_images, self.stored_labels, self.locate, self.span[index], self.device
            )
        return self._read(index.cpu().numpy())

    def _rows(self, positions: Integers) -> Integers:
        rows = self.span.start + self.span.step * positions
        return rows if self.locate is None else self.locate(rows)

    def _read(self, positions: Integers) -> ImageSet:
        runs = Runs(self._rows(positions), gap=_GAP_BYTES // self.image_bytes)
        images = torch.from_numpy(self.stored_images.gather(runs))
        if images.dim() == 3:
            images = images.unsqueeze(1)
        return ImageSet(images, _int64(self.stored_labels.gather(runs)))


def _int64(labels: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(labels.astype(np.int64))
