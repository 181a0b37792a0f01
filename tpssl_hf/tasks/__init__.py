"""The three trainings and prediction, each with its configuration, data, run and report."""
