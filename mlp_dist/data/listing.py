"""Which image files a folder holds, and their classes; no file is opened."""

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
_TOOL_FOLDERS = ("__MACOSX", "__pycache__")


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path in DIR, its class, its status (None for a broken link)."""

    path: str
    label: int
    status: os.stat_result | None


@dataclass(frozen=True)
class Listing:
    """`test` is None if DIR has no test part; `notes` tell what in DIR is ignored."""

    classes: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile] | None
    notes: list[str]


def list_folder(directory: Path) -> Listing:
    """Raises DataError if DIR has no classes, or classes that cannot be used; OSError."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; folder:DIR needs one folder per class in DIR")
    has_parts = (directory / "train").is_dir()
    if has_parts and not (directory / "test").is_dir():
        raise DataError(f"{directory} has a folder train but none named test; it needs both, or neither")
    root = directory / "train" if has_parts else directory
    classes = tuple(_class_names(root))
    if _MLFLOW in classes:
        raise DataError(
            f"{root / _MLFLOW} is MLflow's, not a class: move it, mlflow.db and outputs out of {root}, and "
            "start trainings in another directory"
        )
    if len(classes) < 2:
        raise DataError(f"{root} holds {len(classes)} folders; it needs two or more, one per class")
    for name in (str(directory), *classes):
        if not name.isprintable():
            raise DataError(f"{name!r} has unprintable characters; rename that folder")
    other: Counter[str] = Counter()
    train = _labelled_files(directory, root, classes, other)
    check_classes(root, classes, {file.label for file in train})
    if not has_parts:
        return Listing(classes, train, None, [*_notes(directory, root, other)])
    test_root = directory / "test"
    extra = sorted(set(_class_names(test_root)) - set(classes))
    if extra:
        raise DataError(f"{test_root} has folders that {root} lacks: {', '.join(extra)}")
    test = _labelled_files(directory, test_root, classes, other)
    notes = [*_notes(directory, root, other)]
    tested = {file.label for file in test}
    if missing := [name for label, name in enumerate(classes) if label not in tested]:
        notes.append(f"{test_root} has no images of the classes {', '.join(missing)}")
    return Listing(classes, train, test, notes)


def check_classes(directory: Path, classes: tuple[str, ...], labels: set[int]) -> None:
    """Raise DataError unless each class has one of `labels`."""
    if empty := [name for label, name in enumerate(classes) if label not in labels]:
        raise DataError(
            f"{directory} has no training images in the folders {', '.join(empty)}; "
            "add images to each, or remove it"
        )


def _notes(directory: Path, root: Path, other: Counter[str]) -> Iterator[str]:
    if other:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(other.items()))
        yield f"ignored in {directory}, because only {', '.join(FORMATS)} files are read: {kinds}"
    loose = sum(path.suffix.lower() in _SUFFIXES for path in root.iterdir() if path.is_file())
    if loose:
        yield f"ignored in {root}: {loose} images outside the class folders"


def _class_names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_tool_file(entry.name))


def _is_tool_file(name: str) -> bool:
    """Hidden files and what tools create, such as .ipynb_checkpoints and __MACOSX."""
    return name.startswith(".") or name in _TOOL_FOLDERS


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
    """(path, status) of the image files in `folder` and its subfolders, in order.

    Files with other suffixes are counted in `other`. `folder` may be a link; links to folders inside it are
    not followed, because they may form a cycle.
    """
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{prefix}{entry.name}"
            if _is_tool_file(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _image_files(folder, other, f"{path}/")
            elif entry.name.lower().endswith(_SUFFIXES):
                try:
                    status = entry.stat()
                except OSError:
                    yield path, None
                else:
                    # Reading a named pipe could block forever.
                    if S_ISREG(status.st_mode):
                        yield path, status
            elif entry.is_file():
                other[Path(entry.name).suffix or entry.name] += 1
