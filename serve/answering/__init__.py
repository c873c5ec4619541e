"""What TorchServe's worker needs beside the handler: it travels inside the archive."""
