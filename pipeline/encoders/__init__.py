"""Encoders: networks from an observation (points, voxels, a picture) to latents.

Their parameters are shared by all samples. In fits each sample goes through alone: batch
normalization takes running statistics, and products are made one sample at a time where a kernel's
bits would depend on the size of the batch.
"""
