"""Metrics of a worker for Prometheus: images by class, confidence, bad requests by kind.

TorchServe reads each value from a line of the worker's output, which costs more than a prediction. Values
are therefore summed here and emitted at most once per second.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from threading import Lock, Timer
from typing import Any

from mlp_dist.core.errors import ImageError

IMAGES = "mlp_images_total"
CONFIDENCE = "mlp_confidence_total"
BAD_REQUESTS = "mlp_bad_requests_total"

FLUSH_SECONDS = 1.0


class WorkerMetrics:
    """Counters of one worker. `cache` is TorchServe's metrics cache; with None nothing is emitted."""

    def __init__(self, cache: Any, model: str, version: str, classes: Sequence[str]) -> None:
        self._model, self._labels = [_label(model), _label(version)], [_label(name) for name in classes]
        self._lock, self._is_scheduled, self._metrics = Lock(), False, dict[str, Any]()
        # All series start at 0, so that Prometheus sees the first increase.
        self._values: dict[tuple[str, ...], float] = defaultdict(float)
        kinds: list[type[ImageError]] = [ImageError, *ImageError.__subclasses__()]
        zeros = [(CONFIDENCE,), *((IMAGES, label) for label in self._labels)]
        zeros += [(BAD_REQUESTS, kind.__name__) for kind in kinds]
        self._values.update(dict.fromkeys(zeros, 0))
        if cache is not None:
            from ts.metrics.metric_type_enum import MetricTypes

            for name, label in {IMAGES: ["class"], CONFIDENCE: [], BAD_REQUESTS: ["type"]}.items():
                labels = ["model_name", "model_version", *label]
                self._metrics[name] = cache.add_metric_to_cache(name, "Count", labels, MetricTypes.COUNTER)
            self._flush()

    def count_predictions(self, rows: Sequence[Sequence[float]]) -> None:
        """Count probabilities, one row per image."""
        with self._lock:
            for row in rows:
                highest = max(row)
                self._values[IMAGES, self._labels[row.index(highest)]] += 1
                self._values[CONFIDENCE,] += highest
        self._schedule_flush()

    def count_error(self, error: ImageError) -> None:
        with self._lock:
            self._values[BAD_REQUESTS, type(error).__name__] += 1
        self._schedule_flush()

    def _flush(self) -> None:
        with self._lock:
            values, self._values, self._is_scheduled = self._values, defaultdict(float), False
        for (name, *label), value in values.items():
            self._metrics[name].add_or_update(round(value, 6), [*self._model, *label])

    def _schedule_flush(self) -> None:
        if self._is_scheduled or not self._metrics:
            return
        self._is_scheduled = True
        # A timer, so that the last requests before an idle period are emitted too.
        timer = Timer(FLUSH_SECONDS, self._flush)
        timer.daemon = True
        timer.start()


def _label(text: str) -> str:
    """`text` without the separators of TorchServe's metric lines."""
    return re.sub(r"[^\w .+/()-]", "_", text) or "_"
