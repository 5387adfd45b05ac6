"""What the benchmarks of CUDA kernels share."""
