"""The drawing page of `python -m serve.draw`."""
