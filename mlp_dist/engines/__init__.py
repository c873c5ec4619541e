"""The ways to run training steps. `build_engine` takes the fastest that does what is asked."""

from mlp_dist.engines.eager import EagerEngine
from mlp_dist.engines.graph import GraphEngine
from mlp_dist.engines.job import Engine, Job
from mlp_dist.engines.plain import PlainEngine

__all__ = ["Engine", "Job", "build_engine"]


def build_engine(job: Job) -> Engine:
    if GraphEngine.takes(job):
        return GraphEngine(job)
    return PlainEngine(job) if PlainEngine.takes(job) else EagerEngine(job)
