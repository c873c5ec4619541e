"""Run by serve.package in a process of its own: does an unpacked archive answer with what it brings?

  python -I verify.py DIR        the answer to DIR/golden.png, as JSON, the last line on stdout

Everything installed beside torch, torchvision and torchserve cannot be imported here.
"""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

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


class Blocker:
    """A finder that refuses every installed package outside the closure of ROOTS."""

    def __init__(self) -> None:
        allowed = _closure(ROOTS)
        self.blocked = {
            module
            for module, distributions in packages_distributions().items()
            if not allowed & {_normalized(name) for name in distributions}
        } - {"mlp_dist"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"{name} is not there where the archive is served", name=name)


def main(directory: Path) -> None:
    sys.meta_path.insert(0, Blocker())
    sys.path.insert(0, str(directory))
    from ts.context import RequestProcessor
    from ts.model_loader import TsModelLoader

    manifest = json.loads((directory / "MAR-INF" / "MANIFEST.json").read_text())
    service = TsModelLoader().load(
        manifest["model"]["modelName"], str(directory), manifest["model"]["handler"], batch_size=1
    )
    import mlp_dist

    if not Path(mlp_dist.__file__).is_relative_to(directory):
        raise SystemExit(f"mlp_dist comes from {mlp_dist.__file__}, not from the archive")
    service.context.request_processor = [RequestProcessor({})]
    golden = bytearray((directory / "golden.png").read_bytes())
    [answer] = service._entry_point([{"body": golden}], service.context)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
