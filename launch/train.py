"""`accelerate launch launch/train.py`: mlp_dist/train.py is the command."""

from mlp_dist import command
from mlp_dist.train import main

if __name__ == "__main__":
    command.run(main, at_once=True)
