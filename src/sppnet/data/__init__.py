"""Images, their sizes, and the data sets they come in."""
