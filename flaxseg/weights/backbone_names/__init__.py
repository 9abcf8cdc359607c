"""Knows how other libraries name the tensors of backbones: a file a family."""
