"""The commands, one file each; mlp_dist/__init__.py lets `python -m mlp_dist.NAME` find them."""
