"""Accuracy, accuracy per class, calibration and confusion of a classifier."""
