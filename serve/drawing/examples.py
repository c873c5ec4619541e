"""The pictures that the page offers: test images of the model's own data set."""

from dataclasses import dataclass

from mlp_dist.core.errors import MlpDistError
from mlp_dist.core.image import encode_png
from mlp_dist.tracking import export, find
from serve.archive import Archive

NUMBER = 10


@dataclass(frozen=True)
class Example:
    """`picture` is a PNG file, `label` the name of its true class, "" where it is not known."""

    picture: bytes
    label: str


def examples_of(archive: Archive) -> list[Example]:
    """The first test image of each of NUMBER classes; only the archive's golden image where the data set is
    not at hand. Nothing is downloaded.
    """
    try:
        data = export.run_dataset(find.get_run(archive.spec.run_id), download=False)
    except (MlpDistError, OSError):
        return [Example(archive.golden, "")]
    first: dict[int, int] = {}
    for position, label in enumerate(data.test.labels.tolist()):
        first.setdefault(label, position)
    return [
        Example(encode_png(data.test.images[position]), data.classes[label])
        for label, position in sorted(first.items())[:NUMBER]
    ]
