"""The operators on which every other room is built."""

from sppnet.ops.pyramid import pyramid_pool
from sppnet.ops.regions import region_pyramid_pool

__all__ = ["pyramid_pool", "region_pyramid_pool"]
