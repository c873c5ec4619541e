"""What benchmarks/serving.py compares with: two handlers for TorchServe, and the same model behind others."""
