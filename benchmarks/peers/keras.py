"""Keras on JAX: Sequential and fit on arrays; its weights are drawn as nn.Linear draws them."""

import os
import time
from itertools import pairwise
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras

from benchmarks.peers.cases import Case, Train, Trained, arrays
from mlp_dist.data.image_set import Dataset


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def _build(case: Case, data: Dataset, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    sizes = case.layer_sizes(data)
    layers = []
    for inputs, units in pairwise(sizes):
        # nn.Linear's: uniform up to 1 / sqrt(inputs), weights and biases alike.
        kernel, bias = (keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5) for _ in range(2))
        layers.append(
            keras.layers.Dense(units, activation="relu", kernel_initializer=kernel, bias_initializer=bias)
        )
    layers[-1].activation = keras.activations.linear
    model = keras.Sequential([keras.Input((sizes[0],)), *layers])
    kind = keras.optimizers.SGD if case.optimizer == "sgd" else keras.optimizers.Adam
    model.compile(
        optimizer=kind(case.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def prepare(case: Case) -> Train:
    data = case.read()
    (images, labels), (test_images, test_labels) = arrays(data.train), arrays(data.test)

    def train(seed: int, num_epochs: int) -> Trained:
        model, clock, reached = _build(case, data, seed), Clock(), None
        for _ in range(num_epochs):
            model.fit(images, labels, batch_size=case.batch_size, verbose=0, callbacks=[clock])
            if reached is None:
                answers = model.predict(test_images, batch_size=1000, verbose=0).argmax(axis=1)
                reached = float((answers == test_labels).mean())
        return Trained(clock.seconds, reached, jax.default_backend())

    return train
