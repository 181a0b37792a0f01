"""Semi-supervised classification."""
