"""The processes of a training: how they connect, agree, and notice that one has died. Imports torch late."""

import functools
import itertools
import os
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from mlp_dist.console import launcher, process, progress
from mlp_dist.core.errors import MlpDistError, ProcessLostError, TrainingError

T = TypeVar("T")

_ANNOUNCED_AFTER, _GRACE, _POLL = 5.0, 1.0, 0.01
"""Seconds until a process says that it waits, until one whose connections closed has ended, between looks."""


_trainings = itertools.count()


def _has_lasting_store() -> bool:
    """Whether the launcher keeps the store, also across restarts; else the process of rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@functools.cache
def _store(part: str) -> Any:
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if part:
        return PrefixStore(f"mlp_dist/{part}", _store(""))
    host, _, port = process.address().rpartition(":")
    is_kept_here = process.is_main() and not _has_lasting_store()
    return TCPStore(host, int(port), None, is_kept_here, wait_for_workers=False)


def remember_output_dir(directory: Path, training: int = 0) -> None:
    """Keep the directory for later attempts, if the launcher can restart the training (--max_restarts).

    `training` counts those of a process, which a restart repeats in the same order.
    """
    # A launcher that has died will not restart.
    with suppress(RuntimeError):
        if _has_lasting_store():
            _store("remembered").set(f"output_dir/{training}", os.fsencode(directory))


def remembered_output_dir(training: int = 0) -> Path | None:
    """The directory that this attempt or an earlier one remembered, or None."""
    key = f"output_dir/{training}"
    if not _has_lasting_store() or not _store("remembered").check([key]):
        return None
    return Path(os.fsdecode(_store("remembered").get(key)))


def connect(use_cpu: bool) -> "Peers":
    """Join the processes that the launcher started, in a group on gloo or NCCL that Accelerate uses, too.

    A process that waits says so after 5 seconds, and a signal ends it. Raises UsageError for a wrong launch,
    TrainingError if the processes cannot connect.
    """
    from accelerate import PartialState
    from torch import distributed

    launcher.check_number()
    launcher.check_interfaces()
    rank, size = process.rank_and_size(use_cpu)
    missing = [0] if rank else [*range(1, size)]

    def join() -> Peers:
        if not distributed.is_initialized():
            store, backend = _store(_agree(rank, missing)), "gloo" if use_cpu else "nccl"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
        return Peers()

    try:
        peers = Peers() if size == 1 else _wait(join, size, missing)
    except RuntimeError as error:
        problem = f"the {size} processes cannot connect at {process.address()}"
        raise TrainingError(f"{problem}: {str(error).splitlines()[0]}") from error
    PartialState(cpu=use_cpu)
    process.set_threads(peers.local_size)
    process.keep_freed_memory()
    return peers


def _agree(rank: int, missing: list[int]) -> str:
    """A name that only the processes of this attempt share; removes those that have it from `missing`.

    The launcher's store still holds the addresses of processes that died before a restart, and each machine
    counts its own restarts. So each process asks a unique question, and rank 0 answers until all have heard.
    """
    store, question = _store("join"), uuid.uuid4().hex
    if rank:
        store.set(f"question/{rank}", question)
        name = str(store.get(question), "ascii")
        store.set(f"{name}/{rank}", "heard")
        missing.clear()
        return name
    while missing:
        for other in missing:
            if store.check([f"question/{other}"]):
                store.set(store.get(f"question/{other}").decode(), question)
        time.sleep(_POLL)
        missing[:] = [other for other in missing if not store.check([f"{question}/{other}"])]
    return question


def _wait(work: Callable[[], T], size: int, missing: Sequence[int]) -> T:
    """The result of `work`, which waits for processes: those of the ranks `missing`, as far as that is known.

    A thread does it, since no handler of a signal runs while the main thread waits in C++.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, which never keeps this process from ending.
    threading.Thread(target=run, daemon=True).start()
    if wait([outcome], _ANNOUNCED_AFTER).not_done:
        ranks = f" (rank {', '.join(map(str, missing))})" if missing else ""
        number = len(missing) or f"up to {size - 1}"
        progress.tell_beside(f"waiting for {number} of {size} processes{ranks} at {process.address()}")
    return outcome.result()


class Peers:
    """All processes of the training: `size` of them, `local_size` on this machine; this one has `rank`.

    To be made on all processes together, after the process group. Without a group, this process is alone.
    Messages go over gloo, so they wait for no GPU.
    """

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.size, self.local_size, self.is_local_main = 0, 1, 1, True
        self.training = next(_trainings)
        self._is_starting, self._others = False, dict[int, str]()
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._group: Any = distributed.new_group(backend="gloo")
        boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid").resolve().name
        # Equal for two processes if and only if they share their process IDs.
        here = (socket.gethostname(), boot.read_text() if boot.exists() else "", namespace)
        found = self.gather((here, os.getpid(), uuid.uuid4().hex))
        local = {rank: pid for rank, (machine, pid, _) in enumerate(found) if machine == here}
        self._name, self._is_starting = found[0][2], True
        self.local_size, self.is_local_main = len(local), min(local) == self.rank
        for rank in set(local) - {self.rank}:
            # Not every system has it.
            with suppress(AttributeError, OSError):
                self._others[os.pidfd_open(local[rank])] = f"process {rank} (pid {local[rank]})"

    def _call(self, work: Callable[[], None], missing: Sequence[int] = ()) -> None:
        # During the training, signals are only recorded, and the main process may take its time.
        _wait(work, self.size, missing) if self._is_starting else work()

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on each of them. Raises RuntimeError if a process has died."""
        from torch import distributed

        found = [value] * self.size
        if self.size > 1:
            self._call(lambda: distributed.all_gather_object(found, value, group=self._group))
        return found

    def largest(self, *values: float) -> list[float]:
        """The maximum of each value over all processes, which all call this together."""
        return [max(column) for column in zip(*self.gather(values), strict=True)]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` on the main process; returns its result, or raises its error, on all processes.

        An error of another package is raised on the main process only; the others raise MlpDistError.
        """
        if self.size == 1:
            return work()
        from torch import distributed

        outcome, problem = [cast(Any, None)] * 2, None
        if self.rank == 0:
            try:
                outcome[0] = work()
            except BaseException as error:
                is_ours = isinstance(error, MlpDistError | process.Interrupted)
                outcome[1] = error if is_ours else MlpDistError("the main process has failed")
                problem = error
        send = functools.partial(distributed.broadcast_object_list, outcome, src=0, group=self._group)
        # After an error, the other processes may be gone.
        with suppress(*([RuntimeError] if problem else [])):
            self._call(send, [0] if self.rank else [])
        if problem or outcome[1]:
            raise problem or outcome[1]
        return cast(T, outcome[0])

    @contextmanager
    def watched(self, signals: process.StopSignals | None = None) -> Iterator[None]:
        """Turn a RuntimeError into ProcessLostError if another process of this machine has died.

        Into Interrupted, if this process received one of the `signals`, which the training gives.
        """
        self._is_starting = signals is None and self.size > 1
        try:
            yield
        except RuntimeError as error:
            ended, _, _ = select.select(self._others, [], [], _GRACE if self._others else 0)
            is_first = True
            if ended:
                # Without a launcher, the store ends with the main process.
                with suppress(RuntimeError):
                    is_first = _store(self._name).add("reports", 1) == 1
                names = [self._others[each] for each in ended]
                raise ProcessLostError(names, is_reporter=is_first) from error
            if signals is not None:
                signals.check()
            raise
