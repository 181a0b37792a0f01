"""Figures written beside a run."""
