"""Reads published and own files, checks them, and prepares them as records."""
