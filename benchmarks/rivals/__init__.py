"""TorchServe's image_classifier with our weights, for benchmarks.serving."""
