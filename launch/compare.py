"""`python launch/compare.py`: mlp_dist/cli/compare.py is the command."""

from mlp_dist.cli.compare import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
