"""`python launch/draw.py`: serve/draw.py is the command."""

from mlp_dist.console import command
from serve.draw import main

if __name__ == "__main__":
    command.run(main)
