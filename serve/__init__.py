"""TorchServe: packaging a run, serving it and asking the server."""
