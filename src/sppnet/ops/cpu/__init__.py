"""CPU kernels of the pooling operator, compiled with numba."""
