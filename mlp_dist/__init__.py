"""Train multi-layer perceptrons on images with Accelerate, track them in MLflow, serve them with TorchServe.

This module stands in every model archive, so it imports nothing.
"""

__version__ = "0.1.0"
