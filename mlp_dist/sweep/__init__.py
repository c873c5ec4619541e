"""Hyperparameter sweeps with Optuna. `mlp_dist.cli.sweep` is the command."""
