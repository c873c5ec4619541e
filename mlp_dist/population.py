"""Many trainings at once: members that differ in their seeds, or as a sweep file says.

Each member is a training of its own, with a directory, checkpoints and a run in MLflow; an epoch's steps are
taken for all together where that is faster. In one process only.
"""

import statistics
import time
import uuid
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from mlp_dist import identity, processes, progress
from mlp_dist.checkpoint import Checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrackingError, TrainingError, UsageError
from mlp_dist.data.stored import StoredSet
from mlp_dist.data.streaming import order_of
from mlp_dist.directories import continued, find_checkpoint, new_output_dir
from mlp_dist.engines.population import PopulationEngine
from mlp_dist.member import Member
from mlp_dist.members import SWEPT, members
from mlp_dist.processes import Interrupted, StopSignals
from mlp_dist.recorder import open_run
from mlp_dist.report import training_bar
from mlp_dist.start import start_training
from mlp_dist.steps import Record
from mlp_dist.tracking.record import RunRecord
from mlp_dist.trainer import Trainer


class Population:
    """Members that train side by side; made by `start_population`. They have the same images.

    `together`: whether steps are taken for all at once where that can be; None: where it is faster.
    """

    def __init__(
        self, trainers: Sequence[Trainer], output_dir: Path, *, together: bool | None = None
    ) -> None:
        self.members = [Member(trainer) for trainer in trainers]
        self.config, self.output_dir, self.together = trainers[0].config, output_dir, together
        self._engine: tuple[list[Member], PopulationEngine] | None = None
        self.accelerator = trainers[0].accelerator

    def fit(self) -> Record:
        """Train all members to their ends, test their kept weights and write their bundles.

        Returns what the command's last line shows: the figures of the member that validates best, the number
        of `members` and all `run_ids`. A member whose loss is no number ends alone, its run FAILED.
        Raises Interrupted on one of STOP_SIGNALS, when all members' checkpoints are written; TrainingError
        where no member is left.
        """
        with StopSignals() as signals, ExitStack() as closing:
            closing.enter_context(open_run(self.output_dir, self._record()))
            for member in self.members:
                closing.enter_context(member)
                member.begin()
                signals.check()
            self._train_all(signals)
            signals.at_once()
            results = self._finish_all()
        if not results:
            raise TrainingError(f"no member is left: {self.members[0].problem}")
        best = max(results, key=lambda result: result["val_accuracy"] or 0)
        run_ids = [member.report.run.run_id() for member in self.members]
        return {**best, "members": len(self.members), "run_ids": run_ids}

    def _train_all(self, signals: StopSignals) -> None:
        trainers = [member.trainer for member in self.members]
        with training_bar(trainers) as bar:
            for trainer in trainers:
                trainer.bar = bar
            while going := [member for member in self.members if member.goes_on]:
                self._epoch(going, signals)

    def _finish_all(self) -> list[Record]:
        results = []
        with progress.bar("testing and storing", len(self.members), " members") as bar:
            for member in self.members:
                if member.problem is None:
                    results.append(member.finish())
                bar.update()
        return results

    def _record(self) -> RunRecord:
        """The run that the members' are nested in."""
        with suppress(TrackingError):
            record = RunRecord.load(self.output_dir)
            record.open()
            return record
        config, number = self.members[0].trainer.config, len(self.members)
        return RunRecord(
            experiment=config.experiment,
            name=f"population of {number} {config.recipe}",
            key=uuid.uuid4().hex,
            description=f"{number} trainings of the recipe {config.recipe} at once.",
            tags={**identity.started_by(identity.command()), "recipe": config.recipe},
            params={"recipe": config.recipe, "dataset": config.dataset, "members": number},
        )

    def _epoch(self, going: list[Member], signals: StopSignals) -> None:
        """Of those that have done the fewest epochs, one more; after an interruption they may differ."""
        fewest = min(len(member.trainer.history) for member in going)
        turn = [member for member in going if len(member.trainer.history) == fewest]
        for _, same in groupby(sorted(turn, key=_steps_done), key=_steps_done):
            self._train(list(same), signals)
        done = [member.trainer.history[-1] for member in turn if member.problem is None]
        if done:
            progress.tell(_told(done, going[0].trainer.config.epochs))

    def _train(self, group: list[Member], signals: StopSignals) -> None:
        """An epoch of members that are at the same step."""
        try:
            if self.takes(group):
                self.take_steps(group, signals)
            for member in group:
                with member.alone():
                    member.end_epoch(signals)
        except Interrupted:
            for member in group:
                if member.trainer.epoch_steps.done and member.problem is None:
                    member.trainer.save()
            raise

    def takes(self, group: list[Member]) -> bool:
        """Whether `take_steps` is the way for these."""
        jobs = [member.trainer.job for member in group]
        if len(jobs) == 1 or self.together is False or isinstance(group[0].trainer.train_set, StoredSet):
            return False
        return PopulationEngine.takes(jobs) and (self.together is True or PopulationEngine.pays(jobs))

    def take_steps(self, group: list[Member], signals: StopSignals) -> None:
        """The steps that are left of the epoch, for all at once. They must be at the same step."""
        engine, trainers = self._engine_of(group), [member.trainer for member in group]
        first = trainers[0]
        size, steps = first.config.batch_size, first.epoch_steps
        orders = [
            order_of(each.train_set, seed=each.config.seed, epoch=len(each.history)) for each in trainers
        ]
        first.bar.set_description(f"epoch {len(first.history) + 1}/{first.config.epochs}", refresh=False)
        started, before = time.perf_counter(), [each.epoch_steps.seconds for each in trainers]
        for portion in first.portions(engine.steps_at_once):
            rows = torch.stack([order[portion.start * size : portion.stop * size] for order in orders])
            sizes = steps.batch_sizes[portion.start : portion.stop]
            totals = engine.train(steps.first_step + portion.start, sizes, rows)
            for member, seconds, own in zip(group, before, totals, strict=True):
                with member.alone():
                    member.add(own, sizes, seconds + time.perf_counter() - started, signals)
        if first.device.type == "cuda":
            torch.cuda.synchronize(first.device)
        for trainer, seconds in zip(trainers, before, strict=True):
            trainer.epoch_steps.seconds = seconds + time.perf_counter() - started

    def _engine_of(self, group: list[Member]) -> PopulationEngine:
        """It has the members' state, which changes nowhere else while they stay together."""
        if self._engine is None or self._engine[0] != group:
            jobs = [member.trainer.job for member in group]
            self._engine = (group, PopulationEngine(jobs, group[0].trainer.train_set))
        return self._engine[1]


def _steps_done(member: Member) -> int:
    return member.trainer.epoch_steps.done


def _told(records: Sequence[Record], epochs: int) -> str:
    """An epoch of all members in a line."""
    losses = [record["train_loss"] for record in records]
    told = f"epoch {records[0]['epoch']}/{epochs}  {len(records)} members  "
    told += f"train loss median {statistics.median(losses):.4f}"
    if accuracies := [record["val_accuracy"] for record in records if record["val_accuracy"] is not None]:
        told += f"  val accuracy best {max(accuracies):.2%} median {statistics.median(accuracies):.2%}"
    return told


# What comes before


def start_population(
    config: TrainConfig,
    *,
    population: int | None = None,
    sweep: Path | None = None,
    resume: str = "no",
    given: Set[str] = frozenset(),
) -> Population:
    """`population` members with the seeds from `config.seed` on, or those of the `sweep` file.

    They are in OUTPUT_DIR/member-00 and so on, where `resume` finds them; else as `start_training`, and
    UsageError also for several processes, and for a file that is no sweep.
    """
    if processes.world_size() > 1:
        raise UsageError("a population trains in one process: start it with --num_processes 1")
    if config.mixed_precision == "fp16":
        raise UsageError(
            "a population cannot train in fp16, whose loss scale is one for all: take bf16 or no"
        )
    wanted = members(config, population, sweep)
    if resume == "no":
        output_dir = new_output_dir(config)
    elif config.output_dir is None:
        raise UsageError("to go on with a population, name its directory with --output-dir")
    else:
        output_dir = config.output_dir.absolute()
    width = max(2, len(str(len(wanted) - 1)))
    configs = [
        replace(
            member,
            output_dir=output_dir / f"member-{index:0{width}}",
            run_name=f"{config.run_name}-{index:0{width}}" if config.run_name else None,
        )
        for index, member in enumerate(wanted)
    ]
    known = given | {name for name in SWEPT if len({getattr(each, name) for each in configs}) > 1}
    first = start_training(configs[0], resume=resume, given=known, parent=output_dir)
    others = [_another(first, each, resume=resume, given=known) for each in configs[1:]]
    return Population([first, *others], output_dir)


def _another(first: Trainer, config: TrainConfig, *, resume: str, given: Set[str]) -> Trainer:
    """Another member, on the data and the device of the first."""
    # One that was stopped before its first checkpoint begins anew.
    directory, checkpoint = find_checkpoint(config, resume="no" if resume == "no" else "auto")
    if directory is None or checkpoint is None:
        directory = new_output_dir(config)
        settled = ("dataset", "fallback_dataset", "data_dir", "val_size")
        config = replace(config, **{name: getattr(first.config, name) for name in settled})
    else:
        config = continued(checkpoint, config, given)
    return beside(first, replace(config, output_dir=directory), directory, checkpoint)


def beside(
    first: Trainer, config: TrainConfig, directory: Path, checkpoint: Checkpoint | None = None
) -> Trainer:
    """A trainer on the device and the images of the first, which are in memory once."""
    data = replace(first.data, known_digest=first.data_digest)
    trainer = Trainer(
        config,
        data,
        first.accelerator,
        directory,
        checkpoint=checkpoint,
        workers=first.workers,
        parent=first.parent,
    )
    trainer.train_set, trainer.val_set, trainer.test_set = first.train_set, first.val_set, first.test_set
    return trainer
