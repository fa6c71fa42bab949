"""What to do about folders and repositories that hold a model in no format that is loaded here. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = 'IN', 'OUT'; "
    "M.from_pretrained(a, dtype='auto').save_pretrained(b); T.from_pretrained(a).save_pretrained(b)\""
)
_Advice = tuple[Callable[[str], bool], str]
# The first that fits a file is what a user gets to read.
_ADVICE: tuple[_Advice, ...] = (
    (
        lambda name: name.startswith("adapter_model."),
        "it is a PEFT adapter and no whole model; merge it into its base model with peft's "
        "merge_and_unload() and save_pretrained(), and serve the result",
    ),
    (
        lambda name: name.startswith("ggml-") and name.endswith(".bin"),
        "it is in GGML's format from before GGUF; convert the original model with llama.cpp's "
        "convert_hf_to_gguf.py, or use a GGUF file of it",
    ),
    (
        lambda name: name.startswith("consolidated.") and name.endswith(".pth"),
        "they are pickled weights in Meta's own layout, and unpickling runs code; convert them with "
        "transformers' convert_llama_weights_to_hf.py, or use the same model in Hugging Face's format",
    ),
    (
        lambda name: name.endswith(PICKLES),
        "pickled weights are never loaded, because unpickling runs code; use a repository or revision with "
        f".safetensors or .gguf files, or convert it where you trust it: {_CONVERT}",
    ),
    (
        lambda name: name.endswith((".onnx", ".onnx_data")),
        "it is an ONNX export; use the model that it was made of",
    ),
    (
        lambda name: name.endswith((".msgpack", ".h5", ".tflite", ".nemo", ".engine", ".mlmodel", ".npz")),
        "it is another framework's format; use the model's .safetensors or .gguf files, or export it to them",
    ),
)


def advice(names: Collection[str]) -> str | None:
    """Return what some files are and what to do about it; None where none of them holds weights.

    Args:
        names: of all files, with or without folders before them.
    """
    last_parts = [name.rpartition("/")[2] for name in sorted(names)]
    found = (text for fits, text in _ADVICE if any(fits(name) for name in last_parts))
    return next(found, None)
