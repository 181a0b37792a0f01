"""Intersection over union, pixel accuracy and confusion of a segmenter."""
