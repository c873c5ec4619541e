"""One process of tests/test_exchange.py: exchanging.py RANK SIZE STORE WHAT; it tells what it found."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import distributed

from mlp_dist.training.engines.exchange import OverGloo, ThroughMemory, build_exchange

SIZE = 1000


def numbers(rank: int, step: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 * step + rank))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def same(rank: int, size: int) -> dict[str, object]:
    """What both ways tell, over more steps than there is memory for: bitwise the same, and the right sums."""
    flat = torch.empty(SIZE)
    memory, gloo = ThroughMemory.connected(flat), OverGloo(flat.clone())
    assert memory is not None
    gathered = summed = True
    places: dict[int, list[int]] = {}
    for step in range(7):
        everyone = [numbers(other, step) for other in range(size)]
        for way in (memory, gloo):
            way.flat.copy_(everyone[rank])
            place, found = way.gather()
            gathered &= all(map(torch.equal, found, everyone))
            if way is memory:
                places.setdefault(place, [tensor.data_ptr() for tensor in found])
                gathered &= places[place] == [tensor.data_ptr() for tensor in found]
        if step % 2:
            continue
        for way in (memory, gloo):
            way.flat.copy_(everyone[rank])
            for start, stop in pairwise((0, 300, 301, SIZE)):
                way.start(slice(start, stop))
            way.finish()
            summed &= torch.allclose(way.flat, torch.stack(everyone).sum(0), rtol=0, atol=1e-5)
    expected = [torch.empty(SIZE) for _ in range(size)]
    distributed.all_gather(expected, memory.flat)
    agree = all(torch.equal(memory.flat, other) for other in expected)
    return {"gathered": gathered, "summed": summed, "agree": agree, "places": len(places)}


def without_memory(rank: int, size: int) -> dict[str, object]:
    """One process that cannot share its memory."""
    if rank == 1:
        del os.memfd_create
    before = open_files()
    exchange = build_exchange(numbers(rank, 0))
    _, found = exchange.gather()
    everyone = [numbers(other, 0) for other in range(size)]
    files = open_files() - before
    return {
        "kind": type(exchange).__name__,
        "gathered": all(map(torch.equal, found, everyone)),
        "files": files,
    }


def lost(rank: int, size: int) -> dict[str, object]:
    """The last process ends between two steps."""
    exchange = build_exchange(numbers(rank, 0))
    exchange.gather()
    if rank == size - 1:
        os._exit(0)
    try:
        while True:
            exchange.start(slice(0, SIZE))
            exchange.finish()
    except RuntimeError as error:
        return {"kind": type(exchange).__name__, "error": str(error)}


def main() -> None:
    rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    found = {"same": same, "without_memory": without_memory, "lost": lost}[sys.argv[4]](rank, size)
    print(json.dumps(found), flush=True)
    # Without asking those that have ended.
    os._exit(0)


if __name__ == "__main__":
    main()
