"""Knows the data sets, each in a file, and finds them by name."""
