"""The image that each trained model brings with its answer to it: who loads a model asks it first."""

from mlp_dist.core.errors import BundleError

GOLDEN = "golden.png"

PROBABILITY_TOLERANCE = 1e-6
"""Two computations of one probability agree to this: same weights, another machine or batch size."""


def check_probabilities(answer: dict[str, float], golden: dict[str, float]) -> None:
    """Raise BundleError unless both have the same classes and differ by at most PROBABILITY_TOLERANCE."""
    if list(answer) != list(golden):
        raise BundleError(f"the answer has the classes {list(answer)}, not {list(golden)}")
    worst = max(golden, key=lambda name: abs(answer[name] - golden[name]))
    # Written so that NaN fails as well.
    if not all(abs(answer[name] - golden[name]) <= PROBABILITY_TOLERANCE for name in golden):
        raise BundleError(
            f"the golden image's class {worst!r} is answered with {answer[worst]}, "
            f"the trained model gave {golden[worst]}"
        )
