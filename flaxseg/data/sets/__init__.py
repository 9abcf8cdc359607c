"""TFDS builders, one data set per file."""
