"""Run an unpacked archive's handler in a process that can import only what a server needs.

  python -I verify.py DIR        prints the answer to DIR/golden.png as JSON on the last line

serve.package starts it. Packages other than torch, torchvision, torchserve, OpenCV and their dependencies
are hidden.
"""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

ROOTS = ("torch", "torchvision", "torchserve", "opencv-python-headless", "pyyaml")
"""Installed on a server, with their dependencies. ts imports yaml without declaring it."""


def normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(roots: Sequence[str]) -> set[str]:
    """The distributions `roots` and everything they require."""
    found: set[str] = set()
    waiting = [normalize_name(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                needed = [text for text in requires(name) or [] if "extra ==" not in text]
                waiting += [normalize_name(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in needed]
    return found


def _hide_other_packages() -> None:
    allowed = dependencies(ROOTS)
    for module, distributions in packages_distributions().items():
        is_needed = not allowed.isdisjoint(map(normalize_name, distributions))
        if not is_needed and module not in ("mlp_dist", "serve"):
            # Importing it raises ModuleNotFoundError.
            sys.modules[module] = None  # type: ignore[assignment]
    # Leaves out the finders of editable installations.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]


def main(directory: Path) -> None:
    _hide_other_packages()
    sys.path.insert(0, str(directory))
    from ts.context import RequestProcessor
    from ts.model_loader import TsModelLoader

    model = json.loads((directory / "MAR-INF/MANIFEST.json").read_text())["model"]
    service = TsModelLoader().load(model["modelName"], str(directory), model["handler"], batch_size=1)
    import mlp_dist
    import serve

    for package in (mlp_dist, serve):
        if not Path(str(package.__file__)).is_relative_to(directory):
            raise SystemExit(f"{package.__name__} comes from {package.__file__}, not from the archive")
    service.context.request_processor = [RequestProcessor({"X-Preprocess": "exact"})]
    golden = bytearray((directory / "golden.png").read_bytes())
    [answer] = service._entry_point([{"body": golden}], service.context)
    print(answer.decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
