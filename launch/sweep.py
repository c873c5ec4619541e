"""`python launch/sweep.py` runs mlp_dist/cli/sweep.py."""

from mlp_dist.cli.sweep import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
