"""Metrics of a worker for Prometheus: images by class, confidence, bad requests by kind.

TorchServe reads each value from a line of the worker's output, which costs more than a prediction. Values
are therefore summed here and emitted at most once per second.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Lock, Timer
from typing import Any

from mlp_dist.core.errors import ImageError

IMAGES = "mlp_images_total"
CONFIDENCE = "mlp_confidence_total"
BAD_REQUESTS = "mlp_bad_requests_total"

FLUSH_SECONDS = 1.0


class WorkerMetrics:
    """Counters of one worker. `cache` is TorchServe's metrics cache; with None nothing is emitted.

    mlp_images_total counts images by predicted class, mlp_confidence_total sums their highest probabilities,
    and mlp_bad_requests_total counts refused requests by type of error.
    """

    def __init__(self, cache: Any, model: str, version: str, classes: Sequence[str]) -> None:
        self._cache, self._model = cache, (_label(model), _label(version))
        self._images = [0] * len(classes)
        self._confidence = 0.0
        self._errors: Counter[str] = Counter()
        self._labels = [_label(name) for name in classes]
        self._lock, self._scheduled = Lock(), False
        if cache is not None:
            self._declare()
            self._emit_zeros()

    def count_predictions(self, rows: Sequence[Sequence[float]]) -> None:
        """Count probabilities, one row per image."""
        with self._lock:
            for row in rows:
                highest = max(row)
                self._confidence += highest
                self._images[row.index(highest)] += 1
        self._schedule_flush()

    def count_error(self, error: ImageError) -> None:
        with self._lock:
            self._errors[type(error).__name__] += 1
        self._schedule_flush()

    def _flush(self) -> None:
        with self._lock:
            images, self._images = self._images, [0] * len(self._images)
            confidence, self._confidence = self._confidence, 0.0
            errors, self._errors = self._errors, Counter()
            self._scheduled = False
        for label, number in zip(self._labels, images, strict=True):
            if number:
                self._emit(IMAGES, number, label)
        if confidence:
            self._emit(CONFIDENCE, round(confidence, 6))
        for kind, number in errors.items():
            self._emit(BAD_REQUESTS, number, kind)

    def _schedule_flush(self) -> None:
        if self._scheduled or self._cache is None:
            return
        self._scheduled = True
        # A timer, so that the last requests before an idle period are emitted too.
        timer = Timer(FLUSH_SECONDS, self._flush)
        timer.daemon = True
        timer.start()

    def _declare(self) -> None:
        from ts.metrics.metric_type_enum import MetricTypes

        names = ["model_name", "model_version"]
        counter = MetricTypes.COUNTER
        add = self._cache.add_metric_to_cache
        self._metrics = {
            IMAGES: add(IMAGES, "Count", [*names, "class"], counter),
            CONFIDENCE: add(CONFIDENCE, "Count", names, counter),
            BAD_REQUESTS: add(BAD_REQUESTS, "Count", [*names, "type"], counter),
        }

    def _emit_zeros(self) -> None:
        """Start every series at 0, so that Prometheus sees the first increase."""
        for label in self._labels:
            self._emit(IMAGES, 0, label)
        self._emit(CONFIDENCE, 0)
        for kind in _subclasses(ImageError):
            self._emit(BAD_REQUESTS, 0, kind.__name__)

    def _emit(self, name: str, value: float, *labels: str) -> None:
        self._metrics[name].add_or_update(value, [*self._model, *labels])


def _subclasses(error: type[ImageError]) -> Iterator[type[ImageError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _subclasses(kind)


def _label(text: str) -> str:
    """`text` without the separators of TorchServe's metric lines."""
    return re.sub(r"[^\w .+/()-]", "_", text) or "_"
