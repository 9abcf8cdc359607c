"""Writes the predictions for many images: files, their record, and submissions."""
