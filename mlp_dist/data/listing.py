"""Which image files a folder holds, in which parts and classes; no file is opened."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from mlp_dist.core.errors import DataError
from mlp_dist.core.image import FORMATS

_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".pnm"),
)

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders, in any case, and the part of the data set that they hold."""

_MLFLOW = "mlruns"
_TOOL_FOLDERS = ("__MACOSX", "__pycache__")
_MOST_NAMES = 5


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path in DIR, its class, its status (None for a broken link)."""

    path: str
    label: int
    status: os.stat_result | None


@dataclass(frozen=True)
class Listing:
    """`parts` are "train" and, if DIR has them, "val" and "test"; `notes` tell what in DIR is ignored."""

    classes: tuple[str, ...]
    parts: dict[str, list[ImageFile]]
    notes: list[str]


def list_folder(directory: Path) -> Listing:
    """Raises DataError if DIR has no classes, or classes that cannot be used; OSError."""
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; folder:DIR needs one folder per class in DIR")
    other, notes = Counter[str](), list[str]()
    roots = _part_folders(directory)
    if roots:
        beside = [name for name in _folders(directory) if directory / name not in roots.values()]
        notes += [f"ignored beside {roots['train'].name}: {_listed(beside)}"] if beside else []
    else:
        roots = {"train": directory}
    root = roots["train"]
    classes = tuple(sorted(_named(root)))
    _check_names(directory, root, classes)
    parts = {part: _labelled_files(directory, path, classes, other) for part, path in roots.items()}
    for part, path in roots.items():
        _check_layout(directory, path, classes, parts[part])
        if extra := sorted(set(_named(path)) - set(classes)):
            raise DataError(f"{path} has folders that {root} lacks: {', '.join(extra)}")
        found = {file.label for file in parts[part]}
        if part == "train":
            check_classes(root, classes, found)
        elif missing := [name for label, name in enumerate(classes) if label not in found]:
            notes.append(f"{path} has no images of the classes {', '.join(missing)}")
    return Listing(classes, parts, [*_ignored(directory, root, other), *notes])


def _part_folders(directory: Path) -> dict[str, Path]:
    """The folders of the parts, "train" first; {} if DIR holds the classes themselves.

    A folder named as a part is one if it holds folders: "train" may also be a class, of vehicles.
    """
    found: dict[str, Path] = {}
    for name in _folders(directory):
        part = _PARTS.get(name.casefold())
        if part is not None and _folders(directory / name):
            if part in found:
                raise DataError(f"{found[part]} and {directory / name} are both the {part} part; keep one")
            found[part] = directory / name
    return (
        {part: found[part] for part in ("train", "val", "test") if part in found} if "train" in found else {}
    )


def _check_names(directory: Path, root: Path, classes: tuple[str, ...]) -> None:
    if _MLFLOW in classes:
        raise DataError(
            f"{root / _MLFLOW} is MLflow's, not a class: move it, mlflow.db and outputs out of {root}, and "
            "start trainings in another directory"
        )
    if len(classes) < 2:
        inner = [folder for name in classes if len(_folders(folder := _named(root)[name])) > 1]
        meant = f"; for the folders in it: --dataset folder:{inner[0]}" if inner else ""
        raise DataError(f"{root} holds {len(classes)} folders; it needs two or more, one per class{meant}")
    for name in (str(directory), *classes):
        if not name.isprintable():
            raise DataError(f"{name!r} has unprintable characters; rename that folder")


def _check_layout(directory: Path, root: Path, classes: tuple[str, ...], files: list[ImageFile]) -> None:
    """Raise DataError if a class holds no images itself, but two or more folders of them."""
    inside: dict[str, set[str]] = {name: set() for name in classes}
    depth = len(root.relative_to(directory).parts) + 1
    for file in files:
        inner = file.path.split("/")[depth:]
        inside[classes[file.label]].add(inner[0] if len(inner) > 1 else "")
    nested = {name: sorted(found) for name, found in inside.items() if len(found) > 1 and "" not in found}
    if not nested:
        return
    name, folders = max(nested.items(), key=lambda item: len(item[1]))
    seen = "; ".join(f"{name}/ holds {_listed(found)}" for name, found in nested.items())
    alike = [each for each, found in nested.items() if each != name and set(found) & set(folders)]
    if alike:
        meant = f"if {', '.join([name, *alike])} are parts of one data set, name them train, val and test"
    else:
        meant = f"if these are the classes: --dataset folder:{root / name}"
    raise DataError(
        f"the folders in {root} look like no classes: {seen}, with images in each. Probably {meant}; "
        f"if {_listed(list(classes))} are the classes, move the images of each into one folder"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def check_classes(directory: Path, classes: tuple[str, ...], labels: set[int]) -> None:
    """Raise DataError unless each class has one of `labels`."""
    if empty := [name for label, name in enumerate(classes) if label not in labels]:
        raise DataError(
            f"{directory} has no training images in the folders {', '.join(empty)}; "
            "add images to each, or remove it"
        )


def _ignored(directory: Path, root: Path, other: Counter[str]) -> Iterator[str]:
    if other:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(other.items()))
        yield f"ignored in {directory}, because only {', '.join(FORMATS)} files are read: {kinds}"
    loose = sum(path.suffix.lower() in _SUFFIXES for path in root.iterdir() if path.is_file())
    if loose:
        yield f"ignored in {root}: {loose} images outside the class folders"


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_tool_file(entry.name))


def _named(root: Path) -> dict[str, Path]:
    """The folders by name, in Unicode's composed form: some systems store "é" as two characters."""
    return {unicodedata.normalize("NFC", name): root / name for name in _folders(root)}


def _is_tool_file(name: str) -> bool:
    """Hidden files and what tools create, such as .ipynb_checkpoints and __MACOSX."""
    return name.startswith(".") or name in _TOOL_FOLDERS


def _labelled_files(
    directory: Path, root: Path, classes: tuple[str, ...], other: Counter[str]
) -> list[ImageFile]:
    folders = _named(root)
    files = [
        ImageFile(f"{folders[name].relative_to(directory)}/{path}", label, status)
        for label, name in enumerate(classes)
        if name in folders
        for path, status in _image_files(folders[name], other)
    ]
    if not files:
        found = ", ".join(f"{number} {suffix}" for suffix, number in sorted(other.items()))
        raise DataError(f"{root} holds no {', '.join(FORMATS)} files{found and f', but {found}'}")
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
                other[Path(entry.name).suffix.lower() or "without an extension"] += 1
