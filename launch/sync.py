"""`python launch/sync.py` runs mlp_dist/cli/sync.py."""

from mlp_dist.cli.sync import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
