"""The Optuna study that all workers of a sweep share, in DIR/study.jsonl. Nothing else imports optuna."""

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

STARTUP_TRIALS = 10
"""Trials with random values, before the sampler models the results."""

UNPRUNED_TRIALS = 5
"""Trials that must complete before any is pruned."""

WARMUP_EPOCHS = 2
"""The first epoch after which a trial may be pruned; one epoch says little about a small learning rate."""

COMPLETE, PRUNED, FAILED, UNFINISHED = STATES = ("complete", "pruned", "failed", "unfinished")
_STATES = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}


@dataclass(frozen=True)
class TrialResult:
    """The state of a trial. `value` is its best validation accuracy so far, None before the first epoch;
    `facts` are the ones passed to `Trial.complete`, or the problem passed to `Trial.fail`.
    """

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
        self._reported = set(study.trials[self.number].intermediate_values)

    def report(self, epoch: int, accuracy: float) -> bool:
        """Store an epoch's validation accuracy; returns whether to prune the trial."""
        if epoch not in self._reported:
            self._trial.report(accuracy, epoch)
            self._reported.add(epoch)
        return self._trial.should_prune()

    def complete(self, accuracy: float, **facts: Any) -> None:
        """Finish with the validation accuracy of the kept weights."""
        self._save(facts)
        self._study.tell(self._trial, accuracy)

    def prune(self) -> None:
        self._study.tell(self._trial, state=TrialState.PRUNED)

    def fail(self, problem: str) -> None:
        self._save({"problem": problem})
        self._study.tell(self._trial, state=TrialState.FAIL)

    def _save(self, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)


class Study:
    """The study of `plan`, created if it does not exist.

    TPE (Bergstra et al. 2011) chooses the values. The median rule (Golovin et al. 2017) prunes a trial whose
    best validation accuracy is below the median of the completed trials' at the same epoch. Successive
    halving would stop three of four trials at each rung, too many for the few epochs of a perceptron.
    """

    def __init__(self, plan: Plan, session: str = "") -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.session = plan, session
        journal = plan.directory / JOURNAL
        backend = JournalFileBackend(str(journal), lock_obj=_JournalLock(journal))  # type: ignore[arg-type]
        self._study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="sweep",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS, WARMUP_EPOCHS),
            load_if_exists=True,
        )

    def take(self) -> Trial | None:
        """The next trial to train: one that an earlier session left unfinished, else a new one; None if all
        are taken.
        """
        with locked(self.plan.directory / _TAKING_LOCK):
            trials = self._study.get_trials(deepcopy=False)
            left = next((trial for trial in trials if self._is_left(trial)), None)
            if left is None and len(trials) >= self.plan.num_trials:
                return None
            number = len(trials) if left is None else left.number
            # One seed per trial: its values depend neither on the worker that takes it nor on resumptions.
            seed = int(np.random.SeedSequence((self.plan.seed, number)).generate_state(1)[0])
            self._study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP_TRIALS, constant_liar=True, seed=seed
            )
            trial = self._study.ask() if left is None else optuna.Trial(self._study, left._trial_id)
            trial.set_user_attr("session", self.session)
            return Trial(self._study, trial, self.plan)

    def _is_left(self, trial: FrozenTrial) -> bool:
        return not trial.state.is_finished() and trial.user_attrs.get("session") != self.session

    def results(self) -> list[TrialResult]:
        """All trials so far, by number."""
        return [self._result(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _result(self, trial: FrozenTrial) -> TrialResult:
        accuracies = trial.intermediate_values
        is_complete = trial.state == TrialState.COMPLETE
        return TrialResult(
            number=trial.number,
            state=_STATES.get(trial.state, UNFINISHED),
            values=self.plan.space.values(trial.params),
            value=trial.value if is_complete else max(accuracies.values(), default=None),
            epochs=max(accuracies, default=0),
            facts={name: value for name, value in trial.user_attrs.items() if name != "session"},
        )

    def figure(self) -> "Figure":
        """Optuna's parallel coordinates of the completed trials."""
        from matplotlib import pyplot
        from optuna.visualization.matplotlib import plot_parallel_coordinate

        pyplot.switch_backend("agg")
        with warnings.catch_warnings():
            # The function is experimental, and matplotlib warns about an axis with a single value.
            warnings.simplefilter("ignore")
            plot_parallel_coordinate(self._study, target_name="val accuracy")
        figure = pyplot.gcf()
        pyplot.close(figure)
        # Optuna's lightest lines are white.
        figure.axes[0].collections[0].set_cmap("viridis_r")
        figure.set_size_inches(max(7.0, 4 + 1.7 * len(self.plan.space.parameters)), 5)
        figure.subplots_adjust(left=0.1, right=0.98, bottom=0.2, top=0.9)
        return figure


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
