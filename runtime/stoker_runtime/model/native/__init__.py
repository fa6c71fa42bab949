"""A CPU's step in one call to a small C++ library, `csrc/`, which the wheel and the image bring along.

PyTorch's operators cost some microseconds each, and a small model's step has a thousand of them; the library
computes the same step with the same roundings and no dispatch in between. It is optional: without it, on a
CPU it was not made for, or for a model that it does not compute, `decoder.Decoder` does the work.

`structs` mirrors csrc/api.h, `library` finds and checks the library, `decoder` runs a model with it,
`blocks` reads a GGUF file with it.
"""
