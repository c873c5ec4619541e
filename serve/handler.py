"""The TorchServe handler: the archive's files are checked, and only then is anything of them used."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.answering.worker import Worker


class MLPHandler:
    """TorchServe calls `initialize` once in each of its workers, then `handle` for each batch."""

    worker: "Worker"

    def initialize(self, context: Any) -> None:
        """Raises ArchiveError for files that are not as they were packaged, and what Worker raises."""
        # What Python compiles would lie beside the archive's files, and be run instead of them.
        sys.dont_write_bytecode = True
        from serve.answering.manifest import check_files

        directory = Path(context.system_properties["model_dir"])
        check_files(directory, context.manifest)
        from serve.answering.worker import Worker

        self.worker = Worker(directory, context)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One answer a request: see Worker.answer."""
        return self.worker.answer(data, context)
