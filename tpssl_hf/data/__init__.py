"""Images from wherever they lie to batches: found, scanned once, kept decoded, streamed in a reproducible order."""
