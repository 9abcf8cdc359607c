"""Streams prepared records as batches: cached, augmented, shuffled."""
