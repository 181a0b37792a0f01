"""The training loop and what surrounds it: optimizer, checkpoints, run folder."""
