"""`python launch/sync.py`: mlp_dist/sync.py is the command."""

from mlp_dist import command
from mlp_dist.sync import main

if __name__ == "__main__":
    command.run(main)
