"""What stands still while a population's steps run: stacked tensors, and the tables that steps read."""

from collections.abc import Iterator, Sequence

import torch


class Stack:
    """The members' tensors in one, (N, ...), each padded with zeros to the largest."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
        self.whole = tensors[0].new_zeros(len(tensors), *shape)
        self._theirs = list(tensors)
        self._parts = [
            whole[tuple(slice(size) for size in tensor.shape)]
            for whole, tensor in zip(self.whole, tensors, strict=True)
        ]
        torch._foreach_copy_(self._parts, self._theirs)

    def give_back(self) -> None:
        torch._foreach_copy_(self._theirs, self._parts)


class Tables:
    """What the steps of a call differ in and have cost. A number on the device says which is the next.

    `totals` is (summed loss, number correct), float64 (steps, N, 2).
    """

    def __init__(self, steps: int, number: int, size: int, device: torch.device) -> None:
        self.totals = torch.zeros(steps, number, 2, dtype=torch.float64, device=device)
        self._rows = torch.zeros(steps, number, size, dtype=torch.int64, device=device)
        self._valid = torch.zeros(steps, 1, size, 1, device=device)
        self._shares = torch.zeros(steps, 1, size, 1, device=device)
        self._rates, self._kept = torch.zeros(2, steps, number, 1, 1, device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)

    def fill(
        self, sizes: Sequence[int], rows: torch.Tensor, rates: torch.Tensor, decays: torch.Tensor
    ) -> None:
        """A batch that is shorter than the others is filled with images that count for nothing."""
        place = torch.arange(self._rows.shape[2])
        valid = (place < torch.tensor(sizes).unsqueeze(1)).float()[:, None, :, None]
        shares = valid / torch.tensor(sizes).view(-1, 1, 1, 1)
        for table, values in (
            (self._valid, valid),
            (self._shares, shares),
            (self._rates, rates),
            (self._kept, 1 - rates * decays),
        ):
            table[: len(sizes)] = values
        for number, batch in enumerate(torch.split(rows, list(sizes), dim=1)):
            self._rows[number, :, : batch.shape[1]] = batch
        self._next.zero_()

    def now(self) -> Iterator[torch.Tensor]:
        """Rows (N, B), whether they count (1, B, 1), their shares in the mean (1, B, 1), and the members'
        rates and what weight decay leaves of their parameters, (N, 1, 1) each."""
        tables = (self._rows, self._valid, self._shares, self._rates, self._kept)
        return (table.index_select(0, self._next).squeeze(0) for table in tables)

    def add(self, totals: torch.Tensor) -> None:
        """What the step has cost; the next one's turn comes."""
        self.totals.index_copy_(0, self._next, totals.unsqueeze(0))
        self._next.add_(1)
