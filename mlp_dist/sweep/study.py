"""The Optuna study that all workers of a sweep share, in DIR/study.jsonl."""

import os
from contextlib import suppress

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mlp_dist.core.io import locked
from mlp_dist.sweep.plan import Plan

JOURNAL = "study.jsonl"


def open_study(plan: Plan) -> optuna.Study:
    """The study of `plan`, created if it does not exist.

    TPE (Bergstra et al. 2011) chooses the values. The median rule (Golovin et al. 2017) prunes a trial whose
    best validation accuracy is below the median of the completed trials' at the same epoch. Successive
    halving would stop three of four trials at each rung, too many for the few epochs of a perceptron.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = plan.directory / JOURNAL
    # Optuna's own locks outlive a killed process and block the others for half a minute.
    lock = FileLock(plan.directory / ".study.lock")
    with lock, suppress(FileNotFoundError):
        # A killed process may have left part of a line, and the next line would be appended to it.
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal), lock)),  # type: ignore[arg-type]
        study_name="sweep",
        direction="maximize",
        # One epoch says little about a small learning rate.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        load_if_exists=True,
    )


def take_trial(study: optuna.Study, plan: Plan, session: str) -> optuna.Trial | None:
    """The next trial to train: one that an earlier session left unfinished, else a new one; None if all are
    taken.
    """
    with locked(plan.directory / ".taking.lock"):
        trials = study.get_trials(deepcopy=False)
        for left in trials:
            # Without a session, it was killed before it had all its values.
            if not left.state.is_finished() and left.user_attrs.get("session", session) != session:
                trial = optuna.Trial(study, left._trial_id)
                break
        else:
            if len(trials) >= plan.num_trials:
                return None
            # One seed per trial: its values depend neither on the worker that takes it nor on resumptions.
            seed = int(np.random.SeedSequence((plan.seed, len(trials))).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(constant_liar=True, seed=seed)
            trial = study.ask({**plan.space.distributions})
        trial.set_user_attr("session", session)
        return trial
