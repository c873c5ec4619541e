"""`python launch/sweep.py`: mlp_dist/sweep.py is the command."""

from mlp_dist import command
from mlp_dist.sweep import main

if __name__ == "__main__":
    command.run(main)
