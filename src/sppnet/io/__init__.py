"""Atomic file writes, safetensors files, and local and remote storage."""
