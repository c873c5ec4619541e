"""`python launch/promote.py` runs mlp_dist/cli/promote.py."""

from mlp_dist.cli.promote import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
