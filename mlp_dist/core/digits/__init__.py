"""A picture of one digit -> the frame in which MNIST has it."""
