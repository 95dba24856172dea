"""Pooling operators, and arithmetic of bins and boxes."""
