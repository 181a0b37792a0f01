"""Losses as functions; similarities, softmax and logarithms are computed in float32 inside."""
