"""Images of a batch of requests -> pixels for the model."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import zip_longest

import torch

from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError
from mlp_dist.core.image import decode_image, decode_plain, num_pixels
from mlp_dist.core.inputs import as_batch, convert, needs_conversion
from serve.inference.limits import PIXEL_SECONDS, Budget, RequestError, check_num_images, late_error
from serve.inference.payload import Array
from serve.inference.protocol import PLAIN, Request

_SMALL_PIXELS = 2**20
"""A request with one image of at most this size is answered however long others take."""


class Job:
    """A request's images, which are read one by one: files, and arrays (N, C, H, W)."""

    def __init__(self, request: Request, bundle: Bundle) -> None:
        """Raises ImageError for unknown options, arrays that hold no images, and too many images."""
        self.request, self.seconds = request, 0.0
        self.spec = bundle.spec.image
        self.reading = bundle.reading(request.options.get("preprocess"), request.options.get("background"))
        request.many = request.protocol != PLAIN or len(request.parts) > 1
        self.images: list[bytes | torch.Tensor] = []
        for part in request.parts:
            if isinstance(part, Array):
                self._add(part)
            else:
                self.images.append(part)
        check_num_images(sum(1 if isinstance(image, bytes) else len(image) for image in self.images))
        self.read: list[torch.Tensor | None] = [None] * len(self.images)

    def _add(self, array: Array) -> None:
        self.request.many |= array.is_batch(self.spec)
        batch = as_batch(array.values, self.spec)
        check_num_images(len(batch))
        if array.one and len(batch) > 1:
            raise RequestError(f"{array.where} holds {len(batch)} images; send one each")
        self.images += torch.split(batch, 1) if needs_conversion(batch, self.spec, self.reading) else [batch]

    @cached_property
    def first_pixels(self) -> int:
        return self._num_pixels(0)

    def _num_pixels(self, place: int) -> int:
        image = self.images[place]
        return num_pixels(image) if isinstance(image, bytes) else image[0, 0].numel()

    def read_image(self, place: int, budget: Budget) -> None:
        """Fill in `read[place]`, or the request's error, unless there is an error or no time."""
        is_small = len(self.images) == 1 and self.first_pixels <= _SMALL_PIXELS
        if self.request.error is not None or (budget.is_spent and not is_small):
            return
        pixels = self._num_pixels(place) if place else self.first_pixels
        if not is_small and not budget.allows(pixels):
            return
        image, started = self.images[place], time.monotonic()
        try:
            if isinstance(image, bytes):
                self.read[place] = decode_image(image, self.spec, self.reading)[None]
            else:
                self.read[place] = convert(image, self.spec, self.reading)
        except ImageError as error:
            several = len(self.images) > 1
            self.request.error = type(error)(f"image {place}: {error}") if several else error
        self.seconds += max(time.monotonic() - started, pixels * PIXEL_SECONDS)

    def finish(self, num_threads: int) -> None:
        """Give the request its pixels, or an error if there was no time for all of them."""
        done = [image for image in self.read if image is not None]
        if self.request.error is None and len(done) < len(self.read):
            self.request.error = late_error(len(self.read), len(done), self.seconds / num_threads)
        elif self.request.error is None:
            self.request.pixels = concatenated(done)


class Decoder:
    """Decodes in as many threads as this process may use cores: Pillow and OpenCV release the GIL."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.num_threads = len(os.sched_getaffinity(0))
        self.pool = ThreadPoolExecutor(self.num_threads)

    def decode(self, requests: Sequence[Request], budget: Budget) -> None:
        """Set the `pixels` and `many` of each request, or its `error`."""
        single = [(request, file) for request in requests if (file := request.only_file) is not None]
        files = [file for _, file in single]
        plain, pixels = decode_plain(files, self.bundle.spec.image, self.bundle.reading())
        for place, image in zip(plain, torch.split(pixels, 1), strict=False):
            single[place][0].pixels = image
        jobs = []
        for request in requests:
            if request.pixels is None:
                try:
                    jobs.append(Job(request, self.bundle))
                except ImageError as error:
                    request.error = error
        if jobs:
            self._run(sorted(jobs, key=lambda job: job.first_pixels), budget)

    def _run(self, jobs: Sequence[Job], budget: Budget) -> None:
        """The first images of all jobs, small ones first, then the second ones, ...

        None waits for another's many.
        """
        rounds = zip_longest(*([(job, place) for place in range(len(job.images))] for job in jobs))
        tasks = iter([task for each in rounds for task in each if task is not None])

        def work() -> None:
            for job, place in tasks:
                job.read_image(place, budget)

        num_helpers = min(self.num_threads, sum(len(job.images) for job in jobs)) - 1
        helpers = [self.pool.submit(work) for _ in range(num_helpers)]
        work()
        for helper in helpers:
            helper.result()
        for job in jobs:
            job.finish(self.num_threads)


def concatenated(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches (N, C, H, W), uint8 or float32 from 0 to 1, as one: uint8 only if all are."""
    if any(each.is_floating_point() for each in batches):
        batches = [each if each.is_floating_point() else each.float().div(255) for each in batches]
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))
