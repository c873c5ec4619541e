"""Engines run training steps: `accelerated` any, `cpu` those of a plain MLP in one process."""
