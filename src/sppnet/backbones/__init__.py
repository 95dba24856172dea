"""Backbones: timm networks and the networks of the SPP-net paper, truncated at a feature map."""
