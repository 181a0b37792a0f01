"""Metrics of our own, each a folder that ``evaluate.load`` reads from here, offline, or from the Hub as a Space."""
