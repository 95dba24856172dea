"""Feature vectors of boxes."""
