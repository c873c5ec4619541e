"""The ways to run training steps. `build_engine` takes the fastest that does what is asked."""

from mlp_dist.training.engines.accelerated import EagerEngine
from mlp_dist.training.engines.cpu import PlainEngine
from mlp_dist.training.engines.job import Engine, Job

__all__ = ["Engine", "Job", "build_engine"]


def build_engine(job: Job) -> Engine:
    return PlainEngine(job) if PlainEngine.takes(job) else EagerEngine(job)
