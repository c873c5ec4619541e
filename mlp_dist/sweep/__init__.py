"""A sweep: many trainings in search of the best values. `launch/sweep.py` is its command."""
