"""`accelerate launch launch/train.py`: mlp_dist/cli/train.py is the command."""

from mlp_dist.cli.train import main
from mlp_dist.console import command

if __name__ == "__main__":
    command.run(main, at_once=True)
