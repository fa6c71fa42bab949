"""Weights of fewer bits: how checkpoints pack them, what they stand for, and plain products with them.

Nothing here needs a device; `model.cuda.quantized_linear` has the kernels over the same weights.
"""
