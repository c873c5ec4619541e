"""Runs' figures by epoch, out of MLflow."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from mlp_dist.tracking.store import load_mlflow, one_asking_to

_AT_ONCE = 8
"""Questions that a server is asked at a time."""

Curve = list[tuple[int, float]]
"""Epochs, in order, and values."""


def read_curves(run_ids: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Curve]]:
    """Run id -> metric -> its curve, without what is not finite. Raises TrackingError."""
    with one_asking_to("be asked"), ThreadPoolExecutor(_AT_ONCE) as threads:
        client = load_mlflow().MlflowClient()

        def read(key: tuple[str, str]) -> Curve:
            # Of an epoch that was trained twice, the later figure.
            points = sorted(client.get_metric_history(*key), key=lambda point: (point.step, point.timestamp))
            return list({point.step: point.value for point in points if math.isfinite(point.value)}.items())

        keys = list(product(run_ids, names))
        found = dict(zip(keys, threads.map(read, keys), strict=True))
    return {run_id: {name: found[run_id, name] for name in names} for run_id in run_ids}
