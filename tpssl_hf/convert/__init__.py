"""Weights of other projects turned into timm's layout."""
