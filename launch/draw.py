"""`python launch/draw.py` runs serve/draw.py."""

from mlp_dist.console import command
from serve.draw import main

if __name__ == "__main__":
    command.run(main)
