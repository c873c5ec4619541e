"""The order of an epoch over a set on disk: a permutation that is computed where it is asked for.

It takes the same few kilobytes of memory for any number of images, and its neighbours lie together on the
disk, so that images are read by the thousand.
"""

import numpy as np
import numpy.typing as npt
import torch

from mlp_dist.data.batches import ORDER, generator

BLOCK_BYTES = 2**15
"""Images next to each other in the file that are read together, and so come near each other in an epoch."""

WINDOW_BLOCKS = 256
"""The blocks whose images are mixed with each other."""

_WINDOW = 1
"""Beside ORDER: the stream that mixes each window."""

_ROUNDS = 6


class Permutation:
    """A bijection of 0 to n - 1, n at least 1, drawn from `source`, in constant memory.

    A Feistel network (Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom
    functions") over the smallest even number of bits that holds n - 1, walked on until it is below n (Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains"); its rounds mix as splitmix64 does (Steele, Lea
    and Flood 2014, "Fast splittable pseudorandom number generators").
    """

    def __init__(self, n: int, source: torch.Generator) -> None:
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        keys = torch.randint(-(2**63), 2**63 - 1, (_ROUNDS,), generator=source)
        self._keys = keys.numpy().view(np.uint64)

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What stands at the positions, int64 (N,) from 0 to n - 1."""
        values = self._once(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.n)):
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & self._mask)
        return (left << self._half) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class BlockOrder:
    """A permutation of 0 to n - 1, n at least 1: a function of n, `row_bytes`, seed and epoch alone.

    Every image is seen once. The file, as a ring that is cut anew each epoch, is divided into blocks of
    BLOCK_BYTES (one image, where it is larger); the blocks are put in random order, and the images of each
    WINDOW_BLOCKS that follow each other, in random order too. It is not one of all n! orders: images of one
    block come within one window. `order[start:stop]` gives int64 positions, (stop - start,).
    """

    def __init__(self, n: int, *, row_bytes: int, seed: int, epoch: int) -> None:
        self._n, self._stream = n, (seed, ORDER, epoch)
        source = generator(*self._stream)
        self._block = max(1, min(BLOCK_BYTES // row_bytes, n // WINDOW_BLOCKS))
        # The rest, of less than a block, ends the last window.
        self._blocks = Permutation(max(1, n // self._block), source)
        self._cut = int(torch.randint(n, (), generator=source))
        self._window: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: slice) -> torch.Tensor:
        start, stop, step = index.indices(self._n)
        if step != 1:
            raise ValueError(f"an order is given out in one piece, not in steps of {step}")
        size = self._block * WINDOW_BLOCKS
        parts = [
            self._at(window)[max(start - window * size, 0) : stop - window * size]
            for window in range(start // size, -(-stop // size) if stop > start else 0)
        ]
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))

    def _at(self, window: int) -> npt.NDArray[np.int64]:
        """The images of a window; the last one is kept, as it is asked for again."""
        known, images = self._window
        if known != window:
            size = self._block * WINDOW_BLOCKS
            positions = np.arange(window * size, min((window + 1) * size, self._n))
            block, within = np.divmod(positions, self._block)
            whole = block < self._blocks.n
            block[whole] = self._blocks(block[whole])
            mix = torch.randperm(len(positions), generator=generator(*self._stream, _WINDOW, window))
            rows = (block * self._block + within + self._cut) % self._n
            images = rows[mix.numpy()]
            self._window = (window, images)
        return images
