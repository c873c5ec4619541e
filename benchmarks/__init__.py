"""Each prints a table for people, and as its last line one JSON object for machines."""

from mlp_dist.console.process import limit_spinning

# Before any benchmark imports torch.
limit_spinning()
