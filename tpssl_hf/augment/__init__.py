"""Augmentation of whole batches on the device that trains, with draws that depend on the sample and nothing else."""
