"""How the processes of a training find each other, and what the launcher keeps for those that follow them."""

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
    """Make torch.distributed's process group of all processes, on gloo or NCCL; Accelerate then uses it.

    Sets LOCAL_RANK and LOCAL_WORLD_SIZE where the launcher did not. Does nothing for one process, where a
    group exists, and where the launcher names no meeting place. Raises TimeoutError or RuntimeError where
    not all processes come.
    """
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    told = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    if world_size() == 1 or not told or distributed.is_initialized():
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
    """A name that exactly the processes which are joining now have in common.

    The launcher's store outlives its processes: after a restart it still holds the addresses of those that
    have ended, and whoever reads these cannot connect. TORCHELASTIC_RESTART_COUNT does not tell attempts
    apart, as each machine counts for itself. So each process asks under a name of its own, and rank 0
    answers whatever it finds until all of its own attempt have heard it.
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
            raise TimeoutError(f"processes {missing} of {size} have not come within {default_pg_timeout}")
    return name


def _part(store: "Store", name: str) -> "Store":
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(f"mlp_dist/{name}", store)


# What outlives them


def remember(name: str, text: str) -> None:
    """Keep `text` for the attempts that follow under the launcher's --max_restarts, if it can restart."""
    if (store := _launcher_store()) is not None:
        # One that has died restarts nothing.
        with contextlib.suppress(RuntimeError):
            store.set(name, text.encode(errors="surrogateescape"))  # type: ignore[arg-type]


def recall(name: str) -> str | None:
    """What this attempt or one before it remembered last; None where there is nothing or no such launcher."""
    store = _launcher_store()
    if store is None or not store.check([name]):
        return None
    return store.get(name).decode(errors="surrogateescape")


@functools.cache
def _launcher_store() -> "Store | None":
    """The store that lives in the launcher; None where there is none, or it ends with the processes."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed.rendezvous import rendezvous

    return _part(next(rendezvous("env://"))[0], "remembered")
