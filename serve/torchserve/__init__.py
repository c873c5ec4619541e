"""A local TorchServe server: its processes, files, keys and management API."""
