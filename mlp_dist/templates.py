"""Copy the files that commands are given: search spaces, and settings for Accelerate and for clusters.

  python -m mlp_dist.templates          into launch/ of the current directory
  python -m mlp_dist.templates DIR      into DIR/launch

They are where the documentation has them, to be changed. A checkout has them there by itself.
"""

from pathlib import Path

from mlp_dist import command
from mlp_dist.core.errors import UsageError
from mlp_dist.core.files import replacing_file
from mlp_dist.typed import as_typed

TEMPLATES = Path(__file__).parent / "launch"


def copy_templates(directory: Path) -> list[Path]:
    """The files written into `directory`/launch, which name the commands as they are typed.

    Raises UsageError, and writes nothing, where one of them is there.
    """
    sources = sorted(path for path in TEMPLATES.glob("*/*") if path.is_file())
    copies = [directory / "launch" / source.relative_to(TEMPLATES) for source in sources]
    there = [str(path) for path in copies if path.exists()]
    if there:
        raise UsageError(f"{', '.join(there)} would be overwritten; name another directory")
    for source, copy in zip(sources, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(copy) as temporary:
            temporary.write_text(as_typed(source.read_text()))
    return copies


def main() -> None:
    parser = command.Parser(prog="python -m mlp_dist.templates", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path(), help="(here)")
    for path in copy_templates(parser.parse_args().directory):
        print(path)


if __name__ == "__main__":
    command.run(main)
