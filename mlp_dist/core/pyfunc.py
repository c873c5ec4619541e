"""A trained model as MLflow's python_function, loaded and served without this project installed.

`mlflow.pyfunc` imports this module from the model's own `code` directory and calls `_load_pyfunc`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mlp_dist.core.bundle import Bundle, load_bundle
from mlp_dist.core.errors import ImageError
from mlp_dist.core.inputs import OneOrBatch, decode_text

if TYPE_CHECKING:
    from pandas import DataFrame

IMAGE = "image"  # The input's only column.
PROBABILITIES, _ = OUTPUTS = ("probabilities", "label")


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "ImageClassifier":
    """The model in the directory `path`. Raises BundleError, or MlflowException for an unknown output."""
    bundle = load_bundle(path)
    bundle.check_golden()
    return ImageClassifier(bundle, (model_config or {}).get("output", PROBABILITIES))


class ImageClassifier:
    """Answers with class probabilities, or with class names if `output` is "label"."""

    def __init__(self, bundle: Bundle, output: str) -> None:
        if output not in OUTPUTS:
            raise _invalid(f"output is {output!r}; it can be {' or '.join(OUTPUTS)}")
        self.bundle, self.output = bundle, output

    def predict(self, model_input: "DataFrame") -> "DataFrame | np.ndarray":
        """One row for each image: float64 probabilities in columns named after the classes, or labels (N,).

        A cell of the column `image` is an image file, as bytes, base64 or a data URL, or pixels: nested lists
        or arrays (H, W), (C, H, W), (H, W, C) or flattened, integers from 0 to 255 or floats from 0 to 1.

        Raises MlflowException (HTTP 400) for anything else.
        """
        # Late, so that the package and its archives do not need pandas.
        from pandas import DataFrame

        try:
            images = [_image(cell) for cell in _cells(model_input)]
            answers = self.bundle.predict_proba(images)
        except ImageError as error:
            raise _invalid(str(error)) from None
        frame = DataFrame(answers, columns=list(self.bundle.spec.classes))
        return frame if self.output == PROBABILITIES else frame.idxmax(axis=1).to_numpy(dtype=str)


def _cells(model_input: "DataFrame") -> list[Any]:
    """The column's cells. MLflow puts a list of base64 texts, sent as "inputs", into one cell."""
    cells: list[Any] = model_input[IMAGE].tolist()
    return [each for cell in cells for each in (cell if _is_texts(cell) else [cell])]


def _is_texts(cell: Any) -> bool:
    return isinstance(cell, list) and isinstance(next(iter(cell), None), str)


def _image(cell: Any) -> OneOrBatch:
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, str):
        return decode_text(cell, IMAGE)
    try:
        return np.asarray(cell)
    except ValueError as error:
        raise ImageError(f"the image's rows have different lengths: {error}") from error


def _invalid(message: str) -> Exception:
    """The error that MLflow's server answers with HTTP 400 and this message."""
    from mlflow.exceptions import MlflowException

    error: Exception = MlflowException.invalid_parameter_value(message)
    return error
