"""Readers of data set formats, one module per format."""
