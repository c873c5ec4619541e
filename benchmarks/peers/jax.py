"""A whole epoch as one compiled lax.scan in JAX, its state donated, its images gathered within the step.

That was the fastest of the forms that were tried, before the gathering of the whole epoch at its start; so
was uint8 for the images, at the sizes of MNIST.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.peers.cases import Case, Train, Trained, arrays
from mlp_dist.data.image_set import Dataset

State = Any
"""(weights,) for SGD, (weights, first moments, second moments, step) for Adam."""


def _start(case: Case, data: Dataset, seed: int) -> State:
    draw, sizes = np.random.default_rng(seed), case.layer_sizes(data)
    weights = []
    for inputs, units in pairwise(sizes):
        bound = inputs**-0.5
        shapes = ((inputs, units), (units,))
        weights.append([jnp.asarray(draw.uniform(-bound, bound, shape), jnp.float32) for shape in shapes])
    if case.optimizer == "sgd":
        return (weights,)
    moments = [jax.tree.map(jnp.zeros_like, weights) for _ in range(2)]
    return (weights, *moments, jnp.zeros((), jnp.float32))


def _loss(weights: Any, images: Any, labels: Any) -> Any:
    for weight, bias in weights[:-1]:
        images = jax.nn.relu(images @ weight + bias)
    weight, bias = weights[-1]
    log_probabilities = jax.nn.log_softmax(images @ weight + bias)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def _sgd(state: State, gradient: Any, lr: float) -> State:
    return (jax.tree.map(lambda weight, slope: weight - lr * slope, state[0], gradient),)


def _adam(state: State, gradient: Any, lr: float) -> State:
    """Kingma and Ba, arXiv:1412.6980, with torch's constants."""
    weights, first, second, step = state
    step = step + 1
    first = jax.tree.map(lambda mean, slope: 0.9 * mean + 0.1 * slope, first, gradient)
    second = jax.tree.map(lambda mean, slope: 0.999 * mean + 0.001 * slope**2, second, gradient)
    scale = lr / (1 - 0.9**step)

    def update(weight: Any, mean: Any, square: Any) -> Any:
        return weight - scale * mean / (jnp.sqrt(square / (1 - 0.999**step)) + 1e-8)

    return (jax.tree.map(update, weights, first, second), first, second, step)


def _compile(case: Case) -> Callable[..., Any]:
    update = _sgd if case.optimizer == "sgd" else _adam

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: State, images: Any, labels: Any, order: Any) -> Any:
        def step(state: State, batch: Any) -> Any:
            inputs = images[batch].astype(jnp.float32) / 255
            loss, gradient = jax.value_and_grad(_loss)(state[0], inputs, labels[batch])
            return update(state, gradient, case.lr), loss * len(batch)

        whole = len(order) // case.batch_size * case.batch_size
        state, losses = jax.lax.scan(step, state, order[:whole].reshape(-1, case.batch_size))
        total = losses.sum()
        if whole < len(order):
            state, loss = step(state, order[whole:])
            total += loss
        return state, total / len(order)

    return epoch  # type: ignore[no-any-return]


@jax.jit  # type: ignore[untyped-decorator]
def _num_correct(weights: Any, images: Any, labels: Any) -> Any:
    for weight, bias in weights[:-1]:
        images = jax.nn.relu(images @ weight + bias)
    weight, bias = weights[-1]
    return ((images @ weight + bias).argmax(axis=1) == labels).sum()


def prepare(case: Case) -> Train:
    data = case.read()
    images, labels = (jnp.asarray(part.numpy()) for part in (data.train.images.flatten(1), data.train.labels))
    test_images, test_labels = map(jnp.asarray, arrays(data.test))
    epoch = _compile(case)

    def train(seed: int, num_epochs: int) -> Trained:
        state, draw = _start(case, data, seed), np.random.default_rng([seed, 1])
        jax.block_until_ready(state)
        seconds, reached = [], None
        for _ in range(num_epochs):
            started = time.perf_counter()
            order = draw.permutation(len(labels)).astype(np.int32)
            state, loss = epoch(state, images, labels, order)
            jax.block_until_ready((state, loss))
            seconds.append(time.perf_counter() - started)
            if reached is None:
                reached = _num_correct(state[0], test_images, test_labels).item() / len(test_labels)
        return Trained(seconds, reached, jax.default_backend())

    return train
