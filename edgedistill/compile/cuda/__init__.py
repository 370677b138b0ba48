"""The CUDA engine: compiles a bundle's student into a kernel for one NVIDIA GPU."""
