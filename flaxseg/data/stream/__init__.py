"""Streams prepared records: decoded, cached, augmented, batched."""
