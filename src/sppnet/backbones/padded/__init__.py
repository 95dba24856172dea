"""Batches of images of different sizes, padded, with the answers that each image gets alone."""
