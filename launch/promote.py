"""`python launch/promote.py`: mlp_dist/promote.py is the command."""

from mlp_dist import command
from mlp_dist.promote import main

if __name__ == "__main__":
    command.run(main)
