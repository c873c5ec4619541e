"""What a worker counts for Prometheus: images by class, how sure the answers were, bad requests by kind.

TorchServe reads each figure as a line of what the worker prints, which costs both of them more than an answer
does: so they are added up here, and told at most once a second.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from mlp_dist.core.errors import ImageError

IMAGES = "mlp_images_total"
CONFIDENCE = "mlp_confidence_total"
BAD_REQUESTS = "mlp_bad_requests_total"
MEMORY = "mlp_worker_memory_bytes"

SECONDS = 1.0
"""Between two times of telling."""

_STATM = Path("/proc/self/statm")


class Metrics:
    """The counters of one worker. `cache` is TorchServe's; None, where no TorchServe is: nothing is told.

    mlp_images_total, by class, are the images that were answered with it; mlp_confidence_total is the sum of
    their highest probabilities, so that both together give the mean. mlp_bad_requests_total are the requests
    that were refused, by the type of the error.
    """

    def __init__(self, cache: Any, model: str, version: str, classes: Sequence[str]) -> None:
        self._cache, self._model = cache, (_label(model), _label(version))
        self._images = [0] * len(classes)
        self._confidence = 0.0
        self._errors: Counter[str] = Counter()
        self._labels = [_label(name) for name in classes]
        self._lock, self._waiting = Lock(), False
        if cache is not None:
            self._declare()
            self._tell_nothing_yet()

    def count_answers(self, rows: Sequence[Sequence[float]]) -> None:
        """`rows` are probabilities, one row an image."""
        with self._lock:
            for row in rows:
                highest = max(row)
                self._confidence += highest
                self._images[row.index(highest)] += 1
        self._tell_soon()

    def count_error(self, error: ImageError) -> None:
        with self._lock:
            self._errors[type(error).__name__] += 1
        self._tell_soon()

    def tell(self) -> None:
        """Hand to TorchServe what was counted since the last time."""
        with self._lock:
            images, self._images = self._images, [0] * len(self._images)
            confidence, self._confidence = self._confidence, 0.0
            errors, self._errors = self._errors, Counter()
            self._waiting = False
        for label, number in zip(self._labels, images, strict=True):
            if number:
                self._emit(IMAGES, number, label)
        if confidence:
            self._emit(CONFIDENCE, round(confidence, 6))
        for kind, number in errors.items():
            self._emit(BAD_REQUESTS, number, kind)
        self._emit_memory()

    def _tell_soon(self) -> None:
        if self._waiting or self._cache is None:
            return
        self._waiting = True
        # A thread: the last requests of an evening are not to be told with the first of the morning.
        timer = Timer(SECONDS, self.tell)
        timer.daemon = True
        timer.start()

    def _declare(self) -> None:
        from ts.metrics.metric_type_enum import MetricTypes

        names = ["model_name", "model_version"]
        counter, gauge = MetricTypes.COUNTER, MetricTypes.GAUGE
        add = self._cache.add_metric_to_cache
        self._metrics = {
            IMAGES: add(IMAGES, "Count", [*names, "class"], counter),
            CONFIDENCE: add(CONFIDENCE, "Count", names, counter),
            BAD_REQUESTS: add(BAD_REQUESTS, "Count", [*names, "type"], counter),
            MEMORY: add(MEMORY, "bytes", names, gauge),
        }

    def _tell_nothing_yet(self) -> None:
        """From the first count on there is something that it can be compared with."""
        for label in self._labels:
            self._emit(IMAGES, 0, label)
        self._emit(CONFIDENCE, 0)
        for kind in _kinds(ImageError):
            self._emit(BAD_REQUESTS, 0, kind.__name__)
        self._emit_memory()

    def _emit(self, name: str, value: float, *labels: str) -> None:
        self._metrics[name].add_or_update(value, [*self._model, *labels])

    def _emit_memory(self) -> None:
        if _STATM.exists():
            pages = int(_STATM.read_text().split()[1])
            self._emit(MEMORY, pages * os.sysconf("SC_PAGE_SIZE"))


def _kinds(error: type[ImageError]) -> Iterator[type[ImageError]]:
    yield error
    for kind in error.__subclasses__():
        yield from _kinds(kind)


def _label(text: str) -> str:
    """`text` without what separates the parts of TorchServe's line, or lines."""
    return re.sub(r"[^\w .+/()-]", "_", text) or "_"
