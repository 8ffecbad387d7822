"""Fast paths on CUDA: one Triton kernel that fits small networks on the chip, and graphs."""
