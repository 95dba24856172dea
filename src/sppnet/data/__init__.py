"""Reading images and data sets."""
