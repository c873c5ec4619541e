"""A temperature for a model's logits, so that its answers are as often right as they are sure.

After Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599): one number, which
changes no answer.
"""

import math

import torch

from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.evaluate import predict
from mlp_dist.data.image_set import ImageSet

COLDEST, HOTTEST = 0.05, 20.0

_HALVINGS = 40
"""Of the range's logarithm, which leaves one in 10^11."""


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature T, from COLDEST to HOTTEST, at which softmax(logits / T) fits the labels best: that of
    the least cross entropy, in float64, on the CPU.

    Logits (N, classes), float, and labels (N,), int64, on any device, of images that the model was not
    trained on; 1.0 where there are none, or where each one's logits are all equal. The labels count as wrong
    once in N + 1 times, by chance (after Platt 1999, "Probabilistic Outputs for Support Vector Machines"):
    a model that has all N right would else be made as sure as COLDEST lets it.
    """
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    if len(logits) == 0 or bool((logits == logits[:, :1]).all()):
        return 1.0
    chance = 1 / (len(logits) + 1)
    given = logits.gather(1, labels[:, None]).squeeze(1)
    wanted = ((1 - chance) * given + chance * logits.mean(dim=1)).mean().item()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The loss is convex in 1 / T, and its derivative this mean less the wanted one.
        expected = (torch.softmax(logits / math.exp(middle), dim=1) * logits).sum(dim=1).mean().item()
        low, high = (middle, high) if expected > wanted else (low, middle)
    return math.exp((low + high) / 2)


def model_temperature(model: torch.nn.Module, images: ImageSet, spec: ImageSpec) -> float:
    """`fit_temperature` of what the model answers for `images`, on its device; 1.0 where there are none."""
    return fit_temperature(predict(model, images, spec), images.labels) if len(images) else 1.0
