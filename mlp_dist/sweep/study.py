"""A sweep's trials: Optuna's study of them, which all workers share. Nothing else imports optuna.

It stands in DIR/study.jsonl, Optuna's journal, to which every process appends what it has decided and found.
"""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mlp_dist.core.io import locked
from mlp_dist.sweep.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JOURNAL = "study.jsonl"
_JOURNAL_LOCK = ".study.lock"
_TAKING_LOCK = ".taking.lock"

STARTUP = 10
"""Trials whose values are drawn at random, before the sampler has seen enough to choose."""

UNPRUNED = 5
"""Trials that must have been trained to their ends before any is pruned."""

WARM_UP = 2
"""The first epoch after which a trial may be pruned: one epoch says little about a small learning rate."""

COMPLETE, PRUNED, FAILED, UNFINISHED = "complete", "pruned", "failed", "unfinished"
_STATES = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}


@dataclass(frozen=True)
class Result:
    """What is known of a trial. `value` is its best validation accuracy so far, None before an epoch is over;
    `facts` are those that `Trial.complete` or `fail` told."""

    number: int
    state: str
    values: dict[str, Any]
    value: float | None
    epochs: int
    facts: dict[str, Any]


class Trial:
    """A trial that this process trains."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, plan: Plan) -> None:
        self._study, self._trial = study, trial
        self.number = trial.number
        for parameter in plan.space.parameters:
            parameter.suggest(trial)
        self.values = plan.space.values(trial.params)
        self._told = set(study.trials[self.number].intermediate_values)

    def tell(self, epoch: int, accuracy: float) -> bool:
        """What an epoch validates at; returns whether the trial is not worth going on with."""
        if epoch not in self._told:
            self._trial.report(accuracy, epoch)
            self._told.add(epoch)
        return self._trial.should_prune()

    def complete(self, accuracy: float, **facts: Any) -> None:
        """With the validation accuracy of the epoch whose weights are kept."""
        self._note(facts)
        self._study.tell(self._trial, accuracy)

    def prune(self) -> None:
        self._study.tell(self._trial, state=TrialState.PRUNED)

    def fail(self, problem: str) -> None:
        self._note({"problem": problem})
        self._study.tell(self._trial, state=TrialState.FAIL)

    def _note(self, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)


class Study:
    """The study in the directory of `plan`, made where there is none; the main process comes first.

    Values are chosen by TPE (Bergstra et al. 2011), and trials pruned by the median rule (Golovin et al.
    2017): one ends whose best validation accuracy is below the median of what the completed ones had at the
    same epoch. Successive halving would end three of four at each of its rungs, for which the few epochs of
    a perceptron leave little room.
    """

    def __init__(self, plan: Plan, session: str = "") -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.session = plan, session
        journal = plan.directory / JOURNAL
        backend = JournalFileBackend(str(journal), lock_obj=_JournalLock(journal))  # type: ignore[arg-type]
        pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=WARM_UP)
        self._study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="sweep",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )

    def take(self) -> Trial | None:
        """The next trial to train: one that was interrupted in an earlier session, else a new one; None
        where all are taken."""
        with locked(self.plan.directory / _TAKING_LOCK):
            trials = self._study.get_trials(deepcopy=False)
            left = next((trial for trial in trials if self._is_left(trial)), None)
            if left is None and len(trials) >= self.plan.num_trials:
                return None
            number = len(trials) if left is None else left.number
            # Each trial draws by a seed of its own: the same values whichever worker takes it, and after a
            # resumption no values that were drawn before.
            seed = int(np.random.SeedSequence((self.plan.seed, number)).generate_state(1)[0])
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP, constant_liar=True, seed=seed
            )
            trial = self._study.ask() if left is None else optuna.Trial(self._study, left._trial_id)
            trial.set_user_attr("session", self.session)
            return Trial(self._study, trial, self.plan)

    def _is_left(self, trial: FrozenTrial) -> bool:
        return not trial.state.is_finished() and trial.user_attrs.get("session") != self.session

    def results(self) -> list[Result]:
        """Of all trials so far, by their numbers."""
        return [self._result(trial) for trial in self._study.get_trials(deepcopy=False)]

    def figure(self) -> "Figure":
        """Optuna's parallel coordinates of the completed trials."""
        from matplotlib import pyplot
        from optuna.visualization.matplotlib import plot_parallel_coordinate

        pyplot.switch_backend("agg")
        with warnings.catch_warnings():
            # The function is experimental, and an axis with a single value makes matplotlib warn.
            warnings.simplefilter("ignore")
            plot_parallel_coordinate(self._study, target_name="val accuracy")
        figure = pyplot.gcf()
        pyplot.close(figure)
        figure.set_size_inches(max(7.0, 2 + 1.7 * len(self.plan.space.parameters)), 5)
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.2, top=0.9)
        return figure

    def _result(self, trial: FrozenTrial) -> Result:
        facts = {name: value for name, value in trial.user_attrs.items() if name != "session"}
        accuracies = trial.intermediate_values
        return Result(
            number=trial.number,
            state=_STATES.get(trial.state, UNFINISHED),
            values=self.plan.space.values(trial.params),
            value=trial.value
            if trial.state == TrialState.COMPLETE
            else max(accuracies.values(), default=None),
            epochs=max(accuracies, default=0),
            facts=facts,
        )


class _JournalLock:
    """Replaces Optuna's own locks, which outlive a killed process and block the others for half a minute."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._held = journal, ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(locked(self._journal.with_name(_JOURNAL_LOCK)))
        # A killed process may leave part of a line, and the next line would be appended to it.
        with self._journal.open("a+b") as file:
            size = file.tell()
            file.seek(max(size - 1, 0))
            if file.read() not in (b"\n", b""):
                file.truncate(self._journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._held.close()
