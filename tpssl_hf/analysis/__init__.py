"""What was learnt: probes on frozen features, and the pictures a run leaves behind."""
