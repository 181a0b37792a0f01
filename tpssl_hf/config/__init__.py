"""Configuration: typed dataclasses, one flat key per field."""
