"""Predictions in the formats of other tools, one file each; ``write.py`` knows them all."""
