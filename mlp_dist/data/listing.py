"""What image files a folder holds, and of which class each is; nothing is opened."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from mlp_dist.core.errors import DataError
from mlp_dist.core.image import FORMATS

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff")

_MLFLOW = "mlruns"
_LEFT_BY_TOOLS = ("__MACOSX", "__pycache__")


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path in DIR, class, and status (None for a link to nothing)."""

    path: str
    label: int
    status: os.stat_result | None


@dataclass(frozen=True)
class Listing:
    """`test` is None where DIR has no test part; `notes` say what of DIR is not in it."""

    classes: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile] | None
    notes: list[str]


def list_folder(directory: Path) -> Listing:
    """Raises DataError where DIR has no classes, or classes that cannot be used."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; folder:DIR wants one folder a class in DIR")
    has_parts = (directory / "train").is_dir()
    if has_parts and not (directory / "test").is_dir():
        raise DataError(f"{directory} has a folder train but none named test; it needs both, or neither")
    root = directory / "train" if has_parts else directory
    classes = tuple(_class_names(root))
    if _MLFLOW in classes:
        raise DataError(
            f"{root / _MLFLOW} is where MLflow keeps runs, and no class: take it, mlflow.db and outputs out "
            f"of {root}, and start trainings in another directory"
        )
    if len(classes) < 2:
        raise DataError(f"{root} holds {len(classes)} folders; it needs two or more, one a class")
    for name in (str(directory), *classes):
        if not name.isprintable() or not _is_unicode(name):
            raise DataError(f"{name!r} has characters that cannot be written out; rename that folder")
    other: Counter[str] = Counter()
    train = _labelled_files(directory, root, classes, other)
    check_classes(root, classes, {file.label for file in train})
    if not has_parts:
        return Listing(classes, train, None, [*_notes(directory, root, other)])
    train_root, root = root, directory / "test"
    extra = sorted(set(_class_names(root)) - set(classes))
    if extra:
        raise DataError(f"{root} has folders that the training part lacks: {', '.join(extra)}")
    test = _labelled_files(directory, root, classes, other)
    tested = {file.label for file in test}
    missing = [name for label, name in enumerate(classes) if label not in tested]
    notes = [*_notes(directory, train_root, other)]
    if missing:
        notes.append(f"{root} has no image of the classes {', '.join(missing)}")
    return Listing(classes, train, test, notes)


def _notes(directory: Path, root: Path, other: Counter[str]) -> Iterator[str]:
    if other:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(other.items()))
        yield f"in {directory} files of other kinds than {', '.join(FORMATS)} are left out: {kinds}"
    loose = sum(path.suffix.lower() in _SUFFIXES for path in root.iterdir() if path.is_file())
    if loose:
        yield f"{loose} images in {root} lie in no class's folder and are left out"


def _is_unicode(name: str) -> bool:
    """Whether the name's bytes are UTF-8; those of old archives often are not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_names(root: Path) -> list[str]:
    """The folders in `root` but those that tools leave, as .ipynb_checkpoints and __MACOSX."""
    return sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not _is_left_by_tools(entry.name)
    )


def _is_left_by_tools(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BY_TOOLS


def _labelled_files(
    directory: Path, root: Path, classes: tuple[str, ...], other: Counter[str]
) -> list[ImageFile]:
    base = "" if root == directory else f"{root.name}/"
    files = [
        ImageFile(f"{base}{name}/{path}", label, status)
        for label, name in enumerate(classes)
        if (root / name).is_dir()
        for path, status in _image_files(root / name, other)
    ]
    if not files:
        raise DataError(f"{root} holds no {', '.join(FORMATS)} files")
    return files


def _image_files(
    folder: Path, other: Counter[str], prefix: str = ""
) -> Iterator[tuple[str, os.stat_result | None]]:
    """(path, status) of those in `folder` and the folders in it, in order; hidden ones are none.

    Files with other suffixes are counted in `other`.

    `folder` may be a link; links to folders inside it are not followed, since they may lead back.
    """
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{prefix}{entry.name}"
            if _is_left_by_tools(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _image_files(folder, other, f"{path}/")
            elif entry.name.lower().endswith(_SUFFIXES):
                try:
                    status = entry.stat()
                except OSError:
                    yield path, None
                else:
                    # Others, as named pipes, could be read for ever.
                    if S_ISREG(status.st_mode):
                        yield path, status
            elif entry.is_file():
                other[Path(entry.name).suffix or entry.name] += 1


def check_classes(directory: Path, classes: tuple[str, ...], labels: set[int]) -> None:
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if empty:
        raise DataError(
            f"{directory} has no image to train on in the folders {', '.join(empty)}; "
            "each needs one or more, or is to be removed"
        )
