"""Run by serve.package in a process of its own: does an unpacked archive answer with what it brings?

  python -I verify.py DIR        the answer to DIR/golden.png, as JSON, the last line on stdout

Everything installed beside torch, torchvision and torchserve cannot be imported here.
"""

import json
import re
import sys
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType
from typing import ClassVar

ROOTS = ("torch", "torchvision", "torchserve", "pyyaml")
"""What serves an archive, with all that these need; ts imports yaml without declaring it."""


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(roots: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = _normalized(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed if "extra ==" not in text]
    return found


class ServedFinder(PathFinder):
    """Finds as Python does, but nothing installed outside the closure of ROOTS: as if it were not there."""

    hidden: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in cls.hidden else super().find_spec(fullname, path, target)


def _hide_what_does_not_serve() -> None:
    allowed = _closure(ROOTS)
    ServedFinder.hidden = {
        module
        for module, distributions in packages_distributions().items()
        if not allowed & {_normalized(name) for name in distributions}
    } - {"mlp_dist", "serve"}
    # Those of editable installations go too: they find what stands in no directory of sys.path.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, ServedFinder]


def main(directory: Path) -> None:
    _hide_what_does_not_serve()
    sys.path.insert(0, str(directory))
    from ts.context import RequestProcessor
    from ts.model_loader import TsModelLoader

    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())
    service = TsModelLoader().load(
        manifest["model"]["modelName"], str(directory), manifest["model"]["handler"], batch_size=1
    )
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
