"""The TorchServe handler. It checks the archive's files before it imports any of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.inference.worker import Worker


class MLPHandler:
    """TorchServe calls `initialize` once per worker and `handle` for each batch."""

    worker: "Worker"

    def initialize(self, context: Any) -> None:
        """Raises ArchiveError if files differ from the packaged ones, and BundleError."""
        # Bytecode beside the archive's files would run in their place at the next start.
        sys.dont_write_bytecode = True
        from serve.inference.checksums import check_files

        directory = Path(context.system_properties["model_dir"])
        check_files(directory, context.manifest)
        from serve.inference.worker import Worker

        self.worker = Worker(directory, context)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        return self.worker.respond(data, context)
