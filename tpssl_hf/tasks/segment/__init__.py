"""Semi-supervised segmentation."""
