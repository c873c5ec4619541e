"""What decided an answer: integrated gradients, as numbers and as a heat map.

After Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks" (arXiv:1703.01365), computed by
Captum, which is imported with the first question.
"""

import base64
from typing import Any

import torch

from mlp_dist.core.bundle import Bundle, to_probabilities
from mlp_dist.core.image import encode_png, normalize
from serve.answering.errors import NotInstalledError, RequestError, TooManyImagesError

MAX_IMAGES = 32
"""Of one question: each takes as long as some hundred predictions, and others wait."""

STEPS = 200
"""Points between the baseline and the image. On the way the gradient of a perceptron with ReLU is constant in
pieces: the midpoint rule suits that, and is off by less than 0.5 % of what is to be explained.
"""

_NUMBERS = 2**22
"""Of the inputs that are taken at once."""

_HEAT_MAP_SIZE = 280
_RED, _BLUE = (230, 30, 30), (40, 90, 255)


def explain(bundle: Bundle, pixels: torch.Tensor, target: int | None = None) -> list[dict[str, Any]]:
    """For each image (N, C, H, W), uint8 or float32 from 0 to 1, how much each pixel speaks for a class.

    The class is the one with the index `target`, else the most probable. What is explained is how far its
    logit lies from that of a black image, the baseline: black is the paper of MNIST's digits, so that pixels
    without ink have no part in it. A probability would not do, which depends on the other classes' logits
    too, and does not change any more where the model is sure.

    Each is {"class", "probability" (calibrated), "logit", "baseline": "black", "baseline_logit",
    "attributions", "convergence_delta", "image", "heat_map"}. The attributions are in units of the logit,
    (H, W) for gray images and (C, H, W) for others, to six places; their sum exceeds the difference of both
    logits by `convergence_delta`, the error of the integration. Both pictures are PNGs as data URLs: `image`
    has the pixels themselves; in the heat map red speaks for the class, blue against it.

    Raises NotInstalledError without Captum, RequestError for a class that is not there, TooManyImagesError.
    """
    if len(pixels) > MAX_IMAGES:
        raise TooManyImagesError(f"{len(pixels)} images are to be explained; send at most {MAX_IMAGES}")
    spec = bundle.spec
    if target is not None and not 0 <= target < len(spec.classes):
        raise RequestError(f"there is no class {target}; there are {len(spec.classes)}, counted from 0")
    # Gradients need it, in this thread alone and until here; a tensor made in inference mode has none.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().to(next(bundle.model.parameters()).device)
        inputs = normalize(pixels, spec.image)
        baseline = normalize(torch.zeros_like(pixels[:1]), spec.image)
        with torch.no_grad():
            logits, baseline_logits = bundle.model(inputs), bundle.model(baseline)[0].tolist()
        probabilities = to_probabilities(logits, spec.temperature).tolist()
        targets = logits.argmax(dim=1).tolist() if target is None else [target] * len(pixels)
        attributions = _integrated_gradients(bundle, inputs, baseline, targets)
    return [
        {
            "class": spec.classes[number],
            "probability": round(probabilities[row][number], 6),
            "logit": round(logits[row, number].item(), 6),
            "baseline": "black",
            "baseline_logit": round(baseline_logits[number], 6),
            **_told(attributions[row], logits[row, number].item() - baseline_logits[number]),
            "image": _data_url(encode_png(_bytes(pixels[row]))),
            "heat_map": _data_url(heat_map(pixels[row], attributions[row].sum(dim=0))),
        }
        for row, number in enumerate(targets)
    ]


def _integrated_gradients(
    bundle: Bundle, inputs: torch.Tensor, baseline: torch.Tensor, targets: list[int]
) -> torch.Tensor:
    """Attributions, float32 (N, C, H, W), of normalized rows (N, features) against that of the baseline."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise NotInstalledError(
            "explanations need Captum, which this server lacks: pip install captum, and start it again"
        ) from error
    method, image = IntegratedGradients(bundle.model), bundle.spec.image
    rows = [
        method.attribute(
            row[None],
            baseline,
            target=target,
            n_steps=STEPS,
            method="riemann_middle",
            internal_batch_size=max(1, _NUMBERS // image.num_features),
        )
        for row, target in zip(inputs, targets, strict=True)
    ]
    return torch.cat(rows).detach().cpu().view(-1, image.channels, image.height, image.width)


def _told(attributions: torch.Tensor, difference: float) -> dict[str, Any]:
    """Attributions (C, H, W) as JSON, and how far their sum is off."""
    exact = attributions.double()
    # -0.0 is rounded to -0.0, and told as 0.0.
    rounded = [[[round(value, 6) + 0.0 for value in line] for line in plane] for plane in exact.tolist()]
    return {
        "attributions": rounded[0] if len(rounded) == 1 else rounded,
        "convergence_delta": round(exact.sum().item() - difference, 6),
    }


def heat_map(pixels: torch.Tensor, attributions: torch.Tensor) -> bytes:
    """A PNG of the image (C, H, W), uint8 or float32 from 0 to 1, in gray, and of the attributions (H, W):
    the stronger they are, the more of red where they are above 0, of blue where below. Enlarged where small.
    """
    gray = pixels.cpu().float().mean(dim=0) / (255 if pixels.dtype == torch.uint8 else 1)
    strength = (attributions.abs() / attributions.abs().max().clamp(min=1e-12)).sqrt()
    red, blue = (torch.tensor(colour).view(3, 1, 1) for colour in (_RED, _BLUE))
    colour = torch.where(attributions > 0, red, blue)
    drawn = (1 - strength) * 160 * gray + strength * colour
    times = max(1, _HEAT_MAP_SIZE // max(gray.shape))
    large = drawn.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    return encode_png(large.round().clamp(0, 255).to(torch.uint8))


def _bytes(pixels: torch.Tensor) -> torch.Tensor:
    """uint8, of pixels that may be float32 from 0 to 1."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
