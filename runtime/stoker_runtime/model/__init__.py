"""Tensors: the decoder, its weights, the paged KV cache and the sampler. The only room that imports torch.

`loader.load_runner` is the way in: it returns a Runner (core.step), which computes one StepPlan at a time.

Shape legend: T tokens this step, B requests, H heads, Hkv KV heads, G = H / Hkv, D head size, E hidden size,
V vocabulary, L layers, N blocks, S block size, C context length (tokens attended over).
"""
