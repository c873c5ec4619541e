"""Engines run training steps. `build_engine` selects the fastest one that supports a configuration."""

from mlp_dist.training.engines.accelerated import EagerEngine
from mlp_dist.training.engines.cpu import CPUEngine
from mlp_dist.training.engines.job import Engine, Job

__all__ = ["Engine", "Job", "build_engine"]


def build_engine(job: Job) -> Engine:
    return CPUEngine(job) if CPUEngine.supports(job) else EagerEngine(job)
