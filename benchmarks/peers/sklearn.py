"""scikit-learn's MLPClassifier in float32, an epoch a call of partial_fit; its first weights are its own."""

import time

import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks.peers.cases import Case, Train, Trained, arrays


def prepare(case: Case) -> Train:
    data = case.read()
    (images, labels), (test_images, test_labels) = arrays(data.train), arrays(data.test)

    def train(seed: int, num_epochs: int) -> Trained:
        model = MLPClassifier(
            case.hidden_sizes,
            solver=case.optimizer,
            alpha=0,
            batch_size=case.batch_size,
            learning_rate_init=case.lr,
            momentum=0,
            nesterovs_momentum=False,
            random_state=seed,
        )
        seconds, reached = [], None
        for _ in range(num_epochs):
            started = time.perf_counter()
            model.partial_fit(images, labels, classes=np.arange(len(data.classes)))
            seconds.append(time.perf_counter() - started)
            reached = float(model.score(test_images, test_labels)) if reached is None else reached
        return Trained(seconds, reached)

    return train
