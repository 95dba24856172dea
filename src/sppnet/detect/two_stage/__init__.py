"""Two-stage detection with learned proposals on the maps of one frozen pass."""
