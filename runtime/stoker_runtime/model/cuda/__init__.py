"""The decoder's step on a CUDA device: Triton kernels around PyTorch's matrix products, and CUDA graphs.

`support.why_unusable` says whether the kernels work here; nothing else of this room may be imported where
Triton is missing. Every kernel also runs in Triton's interpreter on the CPU, which is how tests prove it.

Kernel modules hold a kernel and the function that launches it. Their pointers are tensors whose last axis is
contiguous; sizes in capitals are constants of the compiled kernel.
"""
