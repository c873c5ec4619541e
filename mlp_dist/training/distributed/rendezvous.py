"""Joining the process group, and values that the launcher keeps across restarts."""

import contextlib
import functools
import os
import time
import uuid
from typing import TYPE_CHECKING

from mlp_dist.console.processes import world_size
from mlp_dist.training.distributed.network import machine

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_POLL = 0.01


def join(use_cpu: bool) -> None:
    """Make torch.distributed's process group on gloo or NCCL, which Accelerate then uses.

    Sets LOCAL_RANK and LOCAL_WORLD_SIZE if the launcher did not. Does nothing for one process, if a group
    exists, or if the launcher gave no address. Raises TimeoutError or RuntimeError if a process is missing.
    """
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    has_address = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    if world_size() == 1 or not has_address or distributed.is_initialized():
        return
    launcher, rank, size = next(rendezvous("env://"))
    store = _part(launcher, _agree(_part(launcher, "join"), rank, size))
    store.set(f"machine/{rank}", machine())
    if "LOCAL_RANK" not in os.environ:
        machines = [store.get(f"machine/{other}").decode() for other in range(size)]
        os.environ["LOCAL_RANK"] = str(machines[:rank].count(machines[rank]))
        os.environ["LOCAL_WORLD_SIZE"] = str(machines.count(machines[rank]))
    if not use_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "gloo" if use_cpu else "nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _agree(store: "Store", rank: int, size: int) -> str:
    """A name that only the processes of this attempt share.

    The launcher's store outlives its processes: after a restart it still holds the addresses of dead ones.
    TORCHELASTIC_RESTART_COUNT does not identify an attempt, since each machine counts its own restarts. So
    each process asks with a unique question, and rank 0 answers all questions until all ranks have confirmed.
    """
    if rank:
        question = uuid.uuid4().hex
        store.set(f"question/{rank}", question)
        name = store.get(f"answer/{question}").decode()
        store.set(f"heard/{name}/{rank}", "yes")
        return name
    from torch.distributed.constants import default_pg_timeout

    name, missing = uuid.uuid4().hex, list(range(1, size))
    deadline = time.monotonic() + default_pg_timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"question/{other}"]):
                store.set(f"answer/{store.get(f'question/{other}').decode()}", name)
        time.sleep(_POLL)
        missing = [other for other in missing if not store.check([f"heard/{name}/{other}"])]
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {missing} of {size} did not join within {default_pg_timeout}")
    return name


def _part(store: "Store", name: str) -> "Store":
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(f"mlp_dist/{name}", store)


def remember(name: str, text: str) -> None:
    """Keep `text` for later attempts, if the launcher can restart the training (--max_restarts)."""
    if (store := _launcher_store()) is not None:
        # A launcher that has died will not restart.
        with contextlib.suppress(RuntimeError):
            store.set(name, text.encode(errors="surrogateescape"))  # type: ignore[arg-type]


def recall(name: str) -> str | None:
    """The last text remembered under `name` by this attempt or an earlier one, or None."""
    store = _launcher_store()
    if store is None or not store.check([name]):
        return None
    return store.get(name).decode(errors="surrogateescape")


@functools.cache
def _launcher_store() -> "Store | None":
    """The launcher's store, if it outlives the training's processes."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed.rendezvous import rendezvous

    return _part(next(rendezvous("env://"))[0], "remembered")
