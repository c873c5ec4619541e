"""Explanations: integrated gradients, as numbers and as a heat map.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks" (arXiv:1703.01365), computed by Captum,
which is imported at the first explanation.
"""

import base64
import time
from typing import Any

import torch

from mlp_dist.core.bundle import Bundle, to_probabilities
from mlp_dist.core.image import encode_png, normalize
from serve.inference.limits import Budget, NotInstalledError, late_error

STEPS = 200
"""Integration steps. The gradient of a ReLU network is piecewise constant along the path, so the midpoint
rule stays within 0.5 % of the difference of the logits.
"""

_MAX_INPUTS = 2**22
"""Input values per backward pass."""

_HEAT_MAP_SIZE = 280
_RED, _BLUE = (230, 30, 30), (40, 90, 255)


def explain(bundle: Bundle, pixels: torch.Tensor, budget: Budget) -> list[dict[str, Any]]:
    """Attribute the logit of the most probable class to the pixels of each image.

    `pixels` are (N, C, H, W), uint8 or float32 from 0 to 1.

    The baseline is a black image: black is the background of MNIST's digits, so only ink contributes. The
    logit is explained rather than the probability, which saturates and depends on all other logits.

    Each result has the keys class, probability (calibrated), logit, baseline, baseline_logit, attributions,
    convergence_delta, image and heat_map. Attributions, (H, W) for gray images and (C, H, W) for others,
    sum up to logit - baseline_logit + convergence_delta. The last two are PNGs as data URLs: the pixels, and
    red where they raise the logit and blue where they lower it.

    Raises NotInstalledError without Captum, and an ImageError if there is no time for more than the first.
    """
    spec = bundle.spec
    # The caller may be in inference mode, where tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixels.clone().to(next(bundle.model.parameters()).device)
        inputs = normalize(pixels, spec.image)
        baseline = normalize(torch.zeros_like(pixels[:1]), spec.image)
        with torch.no_grad():
            logits, baseline_logits = bundle.model(inputs), bundle.model(baseline)[0].tolist()
        probabilities = to_probabilities(logits, spec.temperature).tolist()
        targets = logits.argmax(dim=1).tolist()
        attributions = _integrated_gradients(bundle, inputs, baseline, targets, budget)
    return [
        {
            "class": spec.classes[number],
            "probability": round(probabilities[row][number], 6),
            "logit": round(logits[row, number].item(), 6),
            "baseline": "black",
            "baseline_logit": round(baseline_logits[number], 6),
            **_attributions(attributions[row], logits[row, number].item() - baseline_logits[number]),
            "image": _data_url(encode_png(_to_uint8(pixels[row]))),
            "heat_map": _data_url(heat_map(pixels[row], attributions[row].sum(dim=0))),
        }
        for row, number in enumerate(targets)
    ]


def _integrated_gradients(
    bundle: Bundle, inputs: torch.Tensor, baseline: torch.Tensor, targets: list[int], budget: Budget
) -> torch.Tensor:
    """Attributions (N, C, H, W), float32, of normalized inputs (N, features)."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise NotInstalledError(
            "explanations need Captum on the server: pip install captum, then restart it"
        ) from error
    method, image = IntegratedGradients(bundle.model), bundle.spec.image
    rows: list[torch.Tensor] = []
    started = time.monotonic()
    for row, target in zip(inputs, targets, strict=True):
        if rows and budget.is_spent:
            raise late_error(len(inputs), len(rows), time.monotonic() - started)
        rows.append(
            method.attribute(
                row[None],
                baseline,
                target=target,
                n_steps=STEPS,
                method="riemann_middle",
                internal_batch_size=max(1, _MAX_INPUTS // image.num_features),
            )
        )
    return torch.cat(rows).detach().cpu().view(-1, image.channels, image.height, image.width)


def _attributions(values: torch.Tensor, difference: float) -> dict[str, Any]:
    """Attributions (C, H, W) as JSON; `difference` is what they should sum up to."""
    exact = values.double()
    # Adding 0.0 turns -0.0 into 0.0.
    rounded = [[[round(value, 6) + 0.0 for value in line] for line in plane] for plane in exact.tolist()]
    return {
        "attributions": rounded[0] if len(rounded) == 1 else rounded,
        "convergence_delta": round(exact.sum().item() - difference, 6),
    }


def heat_map(pixels: torch.Tensor, attributions: torch.Tensor) -> bytes:
    """A PNG of an image (C, H, W) in gray, overlaid with attributions (H, W): red above 0, blue below."""
    gray = pixels.cpu().float().mean(dim=0) / (255 if pixels.dtype == torch.uint8 else 1)
    strength = (attributions.abs() / attributions.abs().max().clamp(min=1e-12)).sqrt()
    red, blue = (torch.tensor(colour).view(3, 1, 1) for colour in (_RED, _BLUE))
    colour = torch.where(attributions > 0, red, blue)
    blended = (1 - strength) * 160 * gray + strength * colour
    scale = max(1, _HEAT_MAP_SIZE // max(gray.shape))
    large = blended.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return encode_png(large.round().clamp(0, 255).to(torch.uint8))


def _to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
