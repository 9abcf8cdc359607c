"""Prepares data sets as records, once, and reads them."""
