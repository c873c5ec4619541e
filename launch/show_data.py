"""`python launch/show_data.py` runs mlp_dist/cli/show_data.py."""

from mlp_dist.cli.show_data import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main)
