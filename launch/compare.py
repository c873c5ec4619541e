"""`python launch/compare.py` runs mlp_dist/cli/compare.py."""

from mlp_dist.cli.compare import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
