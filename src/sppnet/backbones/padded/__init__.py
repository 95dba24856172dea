"""Padding-independent results for padded batches of images of different sizes."""
