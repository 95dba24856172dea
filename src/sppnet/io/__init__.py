"""Files: atomic writes, tensors, remote file systems."""
