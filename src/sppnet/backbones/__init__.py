"""Backbones: networks from timm and from the SPP-net paper, cut off at a feature map."""
