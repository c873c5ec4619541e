"""`python launch/show_data.py`: mlp_dist/show_data.py is the command."""

from mlp_dist import command
from mlp_dist.show_data import main

if __name__ == "__main__":
    command.run(main)
