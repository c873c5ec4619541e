"""`accelerate launch launch/train.py` runs mlp_dist/cli/train.py."""

from mlp_dist.cli.train import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main, at_once=True)
