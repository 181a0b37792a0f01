"""Target pretraining."""
