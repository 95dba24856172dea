"""The HTTP server of `sppnet serve`, and its page."""
