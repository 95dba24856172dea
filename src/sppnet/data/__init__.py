"""Reading of images and data sets."""
