"""Training: the loop, its state, and the processes that share it."""
