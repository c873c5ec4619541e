"""`python -m mlp_dist.sweep`: this package hides the module of the same name in mlp_dist/cli."""

import runpy

if __name__ == "__main__":
    runpy.run_module("mlp_dist.cli.sweep", run_name="__main__", alter_sys=True)
