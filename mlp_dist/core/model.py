"""Builds the model of a ModelSpec, for training and serving. Any module works; core/kinds.py names them."""

import base64
import contextlib
import io
import json
import logging
import math
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mlp_dist.core.errors import BundleError, UsageError
from mlp_dist.core.kinds import KINDS
from mlp_dist.core.spec import ModelSpec

_NORMAL_STDS: dict[str, tuple[float | None, float]] = {
    "normal_fan_in": (None, 0.0),
    "normal_0.01": (0.01, 0.0),
    "normal_0.1": (0.1, 0.1),
}
"""Standard deviations of weights and biases; None: 1/sqrt(fan in)."""

INITIALIZATIONS = ("linear", *_NORMAL_STDS)
"""Distributions of initial parameters. "linear" is nn.Linear's: uniform within 1/sqrt(fan in)."""


_FILES = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json|"
    r"data/(weights/weight_\d+|constants/tensor_\d+|sample_inputs/model\.pt|"
    r"(weights|constants)/model_(weights|constants)_config\.json))"
)
"""The files of an exported program that holds nothing but a graph and tensors."""


def build_model(
    spec: ModelSpec, *, generator: torch.Generator | None = None, initialization: str = "linear"
) -> nn.Module:
    """Build the model of `spec`: float32 (B, layer_sizes[0]) -> logits (B, layer_sizes[-1]).

    `initialization`, one of INITIALIZATIONS, draws matrices, and the vectors beside them, from `generator`.
    Other parameters, such as nn.LayerNorm's, start as the module's constructor sets them. Without a generator
    all are undefined, for a state_dict to fill, as those of an exported module always are. Raises BundleError
    if memory is too small, or the program is damaged.
    """
    if spec.program:
        return load_exported(spec.program)
    try:
        if generator is None:
            return _allocate(spec)
        model = _construct(spec, seed=generator.initial_seed())
    except (RuntimeError, MemoryError) as error:
        raise BundleError(f"a model of {spec} has too many parameters for this machine's memory") from error
    for module in model.modules():
        _initialize(module, initialization, generator)
    return model


def _construct(spec: ModelSpec, *, seed: int) -> nn.Module:
    """The model as its constructor makes it; torch's global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[spec.kind](*spec.layer_sizes)


def _allocate(spec: ModelSpec) -> nn.Module:
    """The model with undefined parameters, in memory that is reserved but not used yet."""
    with torch.device("meta"):
        model = KINDS[spec.kind](*spec.layer_sizes)
    # Module.to_empty would import torch's compiler: half a second and 50 MB in every worker.
    undefined = {name: torch.empty_like(each, device="cpu") for name, each in model.state_dict().items()}
    model.load_state_dict(undefined, assign=True)
    # Only the constructor sets buffers that are not in the state_dict.
    return _construct(spec, seed=0) if any(buffer.is_meta for buffer in model.buffers()) else model


@torch.no_grad()
def _initialize(module: nn.Module, initialization: str, generator: torch.Generator) -> None:
    """Draw the matrices of this module itself, and the vectors that follow them, its biases."""
    bound = None
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() > 1:
            bound = 1 / math.sqrt(as_rows(name, parameter)[0].numel())
        if bound is None:
            continue
        if initialization == "linear":
            parameter.uniform_(-bound, bound, generator=generator)
            continue
        weight_std, bias_std = _NORMAL_STDS[initialization]
        std = bias_std if parameter.dim() == 1 else bound if weight_std is None else weight_std
        if std:
            parameter.normal_(std=std, generator=generator)
        else:
            parameter.zero_()


def as_rows(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """A module's matrix, as (fan out, fan in).

    A parameter named "weight" has this shape, as nn.Linear's; others are used as inputs @ matrix.
    """
    return matrix.detach() if name == "weight" else matrix.detach().movedim(0, -1)


# Modules of one's own: their graphs, written by torch.export


def export(module: nn.Module, num_features: int, num_classes: int) -> str:
    """The graph of `module` in evaluation mode: float32 (B, num_features) -> logits (B, num_classes).

    Its parameters and saved buffers are left out. Raises UsageError, with the reason, for a module that
    torch.export cannot write, or with outputs of another shape.
    """
    name, was_training, file = type(module).__name__, module.training, io.BytesIO()
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    try:
        with torch.no_grad():
            answer = module.eval()(torch.zeros(3, num_features, device=device))
        if not torch.is_tensor(answer) or answer.shape != (3, num_classes):
            found = tuple(answer.shape) if torch.is_tensor(answer) else type(answer).__name__
            raise ValueError(f"turns inputs (3, {num_features}) into {found}, not into (3, {num_classes})")
        inputs, free = torch.zeros(2, num_features, device=device), {0: torch.export.Dim.DYNAMIC}
        with _quiet():
            program = torch.export.export(module, (inputs,), dynamic_shapes=(free,))
            _leave_out(program.state_dict)
            torch.export.save(program, file)
    # A forward method may raise anything, and torch.export's errors have no base class in common.
    except Exception as error:
        reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__
        raise UsageError(
            f"{name} cannot be trained and kept: {reason}; its forward must map float32 (B, {num_features}) "
            f"to logits (B, {num_classes}) for any B, and torch.export must be able to write its graph"
        ) from error
    finally:
        module.train(was_training)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.export's own reports: its errors say the same."""
    disabled, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        logging.disable(disabled)


def _leave_out(state_dict: dict[str, Any]) -> None:
    """Replace each tensor by one of its shape that takes the memory of a single number."""
    for name, tensor in list(state_dict.items()):
        empty = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        is_parameter = isinstance(tensor, nn.Parameter)
        state_dict[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty


def load_exported(program: str) -> nn.Module:
    """The module of `export`, in evaluation mode, with undefined parameters for a state_dict to fill.

    Runs no pickled code. Raises BundleError for a program that is damaged or holds more than `export` writes.
    """
    try:
        content = zlib.decompress(base64.b64decode(program))
        _check_files(content)
        module = torch.export.load(io.BytesIO(content)).module()
    except BundleError:
        raise
    # For damaged content torch, zipfile and json raise various exceptions.
    except Exception as error:
        raise BundleError(f"the exported model cannot be read: {error}") from error
    undefined = {
        name: torch.empty(each.shape, dtype=each.dtype) for name, each in module.state_dict().items()
    }
    module.load_state_dict(undefined, assign=True)
    # torch.export's modules refuse this; they are in evaluation mode.
    module.eval = module.train = lambda *_: module  # type: ignore[method-assign]
    return module


def _check_files(content: bytes) -> None:
    """Raise an error for what torch.export.load would unpickle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if not _FILES.fullmatch(name):
                raise BundleError(f"the exported model holds {name!r}, which is no graph and no tensor")
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                if any(entry["use_pickle"] for entry in entries):
                    raise BundleError(f"the exported model's {name!r} names pickled tensors")
            if name.endswith(".pt"):
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
