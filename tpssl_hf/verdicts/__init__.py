"""Did adapting help? Paired comparison of frozen features."""
