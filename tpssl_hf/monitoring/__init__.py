"""Measures of a run's health while it trains."""
