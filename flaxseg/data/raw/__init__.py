"""Reads published and own files, and checks them."""
