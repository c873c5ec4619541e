"""Explanations: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365), and a heat map of them."""

import base64
import time
from typing import Any

import torch

from mlp_dist.core.bundle import Bundle, to_probabilities
from mlp_dist.core.image import encode_png, normalize
from serve.inference.limits import Budget, late_error

STEPS = 200
"""Integration steps. The gradient of a ReLU network is piecewise constant along the path, so the midpoint
rule stays within 0.5 % of the difference of the logits.
"""

_HEAT_MAP_SIZE = 280
_RED, _BLUE = (230, 30, 30), (40, 90, 255)


def explain(bundle: Bundle, pixels: torch.Tensor, budget: Budget) -> list[dict[str, Any]]:
    """Attribute the logit of the most probable class to the pixels of each image.

    `pixels` are (N, C, H, W), uint8 or float32 from 0 to 1. The baseline is black, the background of MNIST's
    digits, so only ink contributes. docs/serving.md has the keys of a result. Attributions, (H, W) for gray
    images and (C, H, W) for others, sum up to logit - baseline_logit + convergence_delta.

    Raises ImageError if there is no time for all images; there is always time for the first.
    """
    results: list[dict[str, Any]] = []
    started = time.monotonic()
    for image in pixels:
        if results and budget.is_spent:
            raise late_error(len(pixels), len(results), time.monotonic() - started)
        results.append(_explain_one(bundle, image))
    return results


def _explain_one(bundle: Bundle, pixels: torch.Tensor) -> dict[str, Any]:
    spec, device = bundle.spec, next(bundle.model.parameters()).device
    # The caller may be in inference mode, where tensors have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        both = torch.stack([pixels, torch.zeros_like(pixels)]).to(device)
        image, baseline = normalize(both, spec.image)
        with torch.no_grad():
            logits, baseline_logits = bundle.model(torch.stack([image, baseline]))
        number = int(logits.argmax())
        along = (torch.arange(STEPS, device=device)[:, None] + 0.5) / STEPS
        path = (baseline + along * (image - baseline)).requires_grad_()
        [gradients] = torch.autograd.grad(bundle.model(path)[:, number].sum(), path)
        attributions = ((image - baseline) * gradients.mean(dim=0)).cpu().view(pixels.shape)
    logit, baseline_logit = logits[number].item(), baseline_logits[number].item()
    exact = attributions.double()
    # Adding 0.0 turns -0.0 into 0.0.
    rounded = [[[round(value, 6) + 0.0 for value in line] for line in plane] for plane in exact.tolist()]
    shown = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().to(torch.uint8)
    return {
        "class": spec.classes[number],
        "probability": round(to_probabilities(logits[None], spec.temperature)[0, number].item(), 6),
        "logit": round(logit, 6),
        "baseline": "black",
        "baseline_logit": round(baseline_logit, 6),
        "attributions": rounded[0] if len(rounded) == 1 else rounded,
        "convergence_delta": round(exact.sum().item() - (logit - baseline_logit), 6),
        "image": _data_url(encode_png(shown)),
        "heat_map": _data_url(heat_map(shown, attributions.sum(dim=0))),
    }


def heat_map(pixels: torch.Tensor, attributions: torch.Tensor) -> bytes:
    """A PNG of a uint8 image (C, H, W) in gray, with attributions (H, W): red above 0, blue below."""
    gray = pixels.cpu().float().mean(dim=0) / 255
    strength = (attributions.abs() / attributions.abs().max().clamp(min=1e-12)).sqrt()
    red, blue = (torch.tensor(colour).view(3, 1, 1) for colour in (_RED, _BLUE))
    blended = (1 - strength) * 160 * gray + strength * torch.where(attributions > 0, red, blue)
    scale = max(1, _HEAT_MAP_SIZE // max(gray.shape))
    large = blended.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    return encode_png(large.round().clamp(0, 255).to(torch.uint8))


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
