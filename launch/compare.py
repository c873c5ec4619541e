"""`python launch/compare.py`: mlp_dist/compare.py is the command."""

from mlp_dist import command
from mlp_dist.compare import main

if __name__ == "__main__":
    command.run(main)
