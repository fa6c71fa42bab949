"""From an EngineConfig to a Runner that is loaded, warm and knows how much KV it has."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from msgspec.structs import replace as replaced

from stoker_runtime.config import MIB, EngineConfig
from stoker_runtime.core.step import Runner, ScheduledRequest, StepPlan
from stoker_runtime.errors import ConfigError, ModelError
from stoker_runtime.gguf_file import find_gguf, read_gguf
from stoker_runtime.machine import available_memory_bytes, memory_limit_bytes, return_freed_memory
from stoker_runtime.messages import EngineReady, SamplingParams
from stoker_runtime.model.architecture import Architecture
from stoker_runtime.model.assembly import Assembly
from stoker_runtime.model.block_assembly import BlockAssembly
from stoker_runtime.model.checkpoint.blocks import KEPT_TYPES
from stoker_runtime.model.checkpoint.config_json import read_config_json
from stoker_runtime.model.checkpoint.dequantize import FORMATS
from stoker_runtime.model.checkpoint.gguf_metadata import architecture_from_gguf
from stoker_runtime.model.checkpoint.weights import GgufSource, SafetensorsSource, WeightSource
from stoker_runtime.model.checkpoint.wrapped import text_name
from stoker_runtime.model.cuda.rooms import buckets, token_buckets
from stoker_runtime.model.cuda.support import computes_quantized, is_usable
from stoker_runtime.model.decoder import Decoder
from stoker_runtime.model.fp8 import FP8
from stoker_runtime.model.kv_cache import KVCache, block_bytes
from stoker_runtime.model.native.blocks import read_blocks
from stoker_runtime.model.native.decoder import NativeDecoder, is_computed
from stoker_runtime.model.native.library import find_kernels
from stoker_runtime.model.quantized.source import QuantizedSource
from stoker_runtime.model.runner import (
    AnyDecoder,
    ChoosingDecoder,
    FeedingDecoder,
    ModelRunner,
    RecordingDecoder,
    run_step,
)
from stoker_runtime.tokenizer_files import read_eos_token_ids

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CPU_WARM_UP_TOKENS = 16


def load_runner(config: EngineConfig) -> Runner:
    """Load a model and make it ready to step.

    Raises:
        ConfigError: a setting does not fit this machine or model; the text names the flag.
        ModelError: the model cannot be loaded; reason ModelNotFound, InvalidModel, UnsupportedModel or
            OutOfMemory.
    """
    started = time.monotonic()
    device = _device(config)
    if config.max_recorded_tokens and device.type == "cpu":
        raise ConfigError(
            f"--max-recorded-tokens is {config.max_recorded_tokens}, which needs a CUDA device; leave it out"
        )
    config = config.for_device(device.type)
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads)
    try:
        return _load(config, device, started)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{config.model} does not fit the device's memory: {error}", reason="OutOfMemory"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise ModelError(
            f"{config.model} does not fit this machine's memory", reason="OutOfMemory"
        ) from error


def _load(config: EngineConfig, device: torch.device, started: float) -> Runner:
    path = Path(config.model)
    architecture, source = open_model(path)
    dtype = _dtype(config, architecture, device)
    architecture = _rounded(architecture, dtype)
    kv_dtype = _kv_dtype(config, dtype, device)
    with source:
        decoder = _decoder(config, architecture, _assembly(config, architecture, source, dtype, device))
    # Weights were unpacked, rounded and rearranged in pieces that nobody needs any more: of SmolLM2's 600 MiB
    # resident that is 14 MiB (gguf), 26 to 136 (none) or 112 to 154 (int8).
    return_freed_memory()
    limit = config.max_model_len or architecture.max_position
    if limit > architecture.max_position:
        raise ConfigError(
            f"--max-model-len is {limit}, but the model attends over {architecture.max_position} tokens; "
            "lower it"
        )
    decoder.set_max_positions(limit)
    _choose_kernels(config, decoder, kv_dtype)
    num_blocks = _num_blocks(config, decoder, kv_dtype)
    capacity = num_blocks * config.block_size
    if capacity < config.max_model_len or capacity < 2:
        raise ModelError(
            f"the KV cache holds {capacity} tokens, fewer than one request of --max-model-len {limit}; raise "
            "--kv-cache-memory or --memory-fraction, or lower --max-model-len",
            reason="OutOfMemory",
        )
    cache = KVCache(architecture, num_blocks, config.block_size, kv_dtype, device)
    if isinstance(decoder, NativeDecoder):
        # Its kernels have threads of their own; those of the few operators left would only spin beside them.
        torch.set_num_threads(1)
    longest = min(limit, capacity)
    _warm_up(config, decoder, cache, longest)
    return ModelRunner(
        decoder,
        cache,
        EngineReady(
            max_model_len=longest,
            num_blocks=num_blocks,
            block_size=config.block_size,
            vocab_size=architecture.vocab_size,
            device=str(decoder.device),
            dtype=str(dtype).removeprefix("torch."),
            # a file may name ids that the model cannot pick, and masking one would read past the logits
            eos_token_ids=tuple(i for i in read_eos_token_ids(path) if 0 <= i < architecture.vocab_size),
            weights_bytes=decoder.num_bytes,
            kv_cache_bytes=cache.num_bytes,
            load_s=time.monotonic() - started,
            async_scheduling=isinstance(decoder, FeedingDecoder),
        ),
    )


def _assembly(
    config: EngineConfig,
    architecture: Architecture,
    source: WeightSource,
    dtype: torch.dtype,
    device: torch.device,
) -> Assembly:
    if config.quantization != "gguf":
        return Assembly(architecture, source, dtype, device)
    if not isinstance(source, GgufSource):
        raise ConfigError(
            f"--quantization is gguf, but {config.model} is not a GGUF file; name one, or use int8 or none"
        )
    if not source.has_blocks:
        types = ", ".join(FORMATS[type_id].name for type_id in sorted(KEPT_TYPES))
        raise ConfigError(
            f"--quantization is gguf, but {config.model} has no weights of {types}; use int8 or none"
        )
    return BlockAssembly(architecture, source, dtype, device)


def _decoder(config: EngineConfig, architecture: Architecture, assembly: Assembly) -> AnyDecoder:
    """Load the weights for whoever computes the steps: C++ or Triton kernels where they can, else PyTorch."""
    quantization = config.quantization
    if quantization == "fp8" and architecture.storage is not None:
        raise ConfigError("--quantization is fp8, but the checkpoint is quantized already; use none")
    is_possible = assembly.device.type == "cpu" and (
        quantization == "none" or (quantization in ("int8", "gguf") and assembly.dtype == torch.bfloat16)
    )
    if is_possible and is_computed(architecture, config.block_size, quantization):
        kernels = find_kernels(assembly.dtype, config.num_threads)
        if kernels is not None:
            return NativeDecoder(architecture, assembly, kernels, quantization)
    if quantization in ("int8", "gguf"):
        raise ConfigError(
            f"--quantization is {quantization}, which needs a CPU with AVX512-BF16, --dtype bfloat16, "
            "a model whose sizes are multiples of 32, and --block-size 16; use none"
        )
    if assembly.device.type == "cuda":
        return _cuda_decoder(config, architecture, assembly)
    if quantization == "fp8":
        raise ConfigError("--quantization is fp8, which needs a CUDA device; use none, or int8 on a CPU")
    return Decoder(architecture, assembly)


def _cuda_decoder(config: EngineConfig, architecture: Architecture, assembly: Assembly) -> AnyDecoder:
    """As _decoder, on a CUDA device. Quantized weights stay so where the kernels read them."""
    rounds = config.quantization == "fp8"
    dtype, device = assembly.dtype, assembly.device
    kv_dtype = _kv_dtype(config, dtype, device)
    is_usable_here = is_usable(architecture, config.block_size, dtype, kv_dtype, device)
    if rounds or architecture.storage is not None:
        if is_usable_here and computes_quantized(architecture, dtype, device):
            assembly.keep_quantized(rounds_to_fp8=rounds)
        elif rounds:
            raise ConfigError(
                "--quantization is fp8, which needs a CUDA device where Triton's kernels work (the log says "
                "why they do not); use none"
            )
    if not is_usable_here:
        return Decoder(architecture, assembly)
    from stoker_runtime.model.cuda.decoder import CudaDecoder  # imports Triton, which is not everywhere

    return CudaDecoder(architecture, assembly)


def _choose_kernels(config: EngineConfig, decoder: AnyDecoder, kv_dtype: torch.dtype) -> None:
    """Measure what a device is fastest with, before steps are measured and recorded, which depend on it."""
    is_wanted = config.kernel_choices == "auto" and decoder.device.type == "cuda"
    if is_wanted and isinstance(decoder, ChoosingDecoder):
        decoder.choose(config.block_size, kv_dtype)


def _device(config: EngineConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError("--device is cuda, but this machine has no usable CUDA device; use auto or cpu")
    return torch.device("cuda", 0) if has_cuda and config.device != "cpu" else torch.device("cpu")


def open_model(path: Path) -> tuple[Architecture, WeightSource]:
    """Read what a GGUF file or a folder of safetensors is, and find its weights.

    Raises:
        ModelError: see load_runner.
    """
    if not path.exists():
        raise ModelError(f"{path} does not exist", reason="ModelNotFound")
    file = find_gguf(path)
    if file is not None:
        gguf = read_gguf(file, texts=())
        architecture = architecture_from_gguf(gguf)
        return architecture, GgufSource(gguf, architecture, read_blocks)
    architecture = read_config_json(path / "config.json")
    files = SafetensorsSource(path, None if architecture.wrapper is None else text_name)
    storage = architecture.storage
    return architecture, files if storage is None else QuantizedSource(files, storage)


def _dtype(config: EngineConfig, architecture: Architecture, device: torch.device) -> torch.dtype:
    """Resolve --dtype auto: half precision where the hardware computes in it, else float32."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if has_fast_bfloat16() else torch.float32
    if not torch.cuda.is_bf16_supported(including_emulation=False) or architecture.stored_dtype == "float16":
        return torch.float16
    return torch.bfloat16


def _rounded(architecture: Architecture, dtype: torch.dtype) -> Architecture:
    """Return the architecture with the embeddings' factor as it is in this type, where that matters."""
    scales = architecture.scales
    if not scales.rounds_embedding:
        return architecture
    factor = torch.tensor(scales.embedding, dtype=dtype).item()
    return replace(architecture, scales=replace(scales, embedding=factor))


def _kv_dtype(config: EngineConfig, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve --kv-cache-dtype."""
    if config.kv_cache_dtype == "auto":
        return dtype
    if device.type == "cpu":
        raise ConfigError("--kv-cache-dtype is fp8, which needs a CUDA device; use auto")
    return FP8


def has_fast_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _num_blocks(config: EngineConfig, decoder: AnyDecoder, kv_dtype: torch.dtype) -> int:
    """Decide the KV cache's size once the weights are in memory."""
    per_block = block_bytes(decoder.architecture, config.block_size, kv_dtype)
    if decoder.device.type == "cpu":
        if config.kv_cache_bytes:
            _check_fits(config.kv_cache_bytes, decoder.num_bytes)
        return config.cpu_kv_cache_bytes(available_memory_bytes()) // per_block
    if config.kv_cache_bytes:
        return config.kv_cache_bytes // per_block
    return _free_cuda_bytes(config, decoder, kv_dtype) // per_block


def _check_fits(kv_cache_bytes: int, weights_bytes: int) -> None:
    """Refuse a KV cache that could never be filled: its pages are taken one by one, long after the start."""
    limit = memory_limit_bytes()
    if kv_cache_bytes + weights_bytes > limit:
        raise ModelError(
            f"--kv-cache-memory is {kv_cache_bytes // MIB} MiB, which the {limit // MIB} MiB that there are "
            f"do not hold beside {weights_bytes // MIB} MiB of weights; lower it, or raise the memory limit",
            reason="OutOfMemory",
        )


def _free_cuda_bytes(config: EngineConfig, decoder: AnyDecoder, kv_dtype: torch.dtype) -> int:
    """Compute the largest step once, then return what memory_fraction leaves beside weights and its peak."""
    longest = config.max_model_len or decoder.architecture.max_position
    torch.cuda.reset_peak_memory_stats(decoder.device)
    scratch = KVCache(decoder.architecture, 1, config.block_size, kv_dtype, decoder.device)
    run_step(decoder, scratch, largest_plan(config, longest, decoder.architecture.vocab_size))
    peak = torch.cuda.max_memory_allocated(decoder.device) - scratch.num_bytes
    torch.cuda.empty_cache()
    recorded = 0
    if isinstance(decoder, RecordingDecoder):
        before = torch.cuda.memory_reserved(decoder.device)
        # the smaller ones will share the memory of these two
        decoder.record(scratch, [config.max_num_seqs], token_buckets(config.max_recorded_tokens)[-1:])
        recorded = torch.cuda.memory_reserved(decoder.device) - before
        decoder.record(scratch, [], [])
    del scratch
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(decoder.device)
    others = total - free - torch.cuda.memory_reserved(decoder.device)
    return max(0, int(total * config.memory_fraction) - others - peak - recorded)


def _warm_up(config: EngineConfig, decoder: AnyDecoder, cache: KVCache, longest: int) -> None:
    """Run steps and record them, so that nobody's first request waits for what happens once.

    A GPU compiles kernels, loads them and reserves memory by size; a CPU only has to have run once.
    """
    is_cpu = decoder.device.type == "cpu"
    num_tokens = _CPU_WARM_UP_TOKENS if is_cpu else config.max_num_batched_tokens
    run_step(decoder, cache, _warm_up_plan(config, num_tokens, longest, num_requests=2))
    if isinstance(decoder, RecordingDecoder):
        decoder.record(cache, buckets(config.max_num_seqs), token_buckets(config.max_recorded_tokens))
    if not is_cpu:
        for size in _warm_up_sizes(config.max_num_batched_tokens):
            run_step(decoder, cache, _warm_up_plan(config, size, longest, num_requests=1))


def _warm_up_sizes(most: int) -> list[int]:
    """Return numbers of tokens whose steps launch every kernel that steps of up to `most` may.

    What is compiled for a number of rows, a mixture's tiles say, is so for powers of two.
    """
    return [1 << power for power in range(most.bit_length())]


def largest_plan(config: EngineConfig, longest: int, vocab_size: int) -> StepPlan:
    """Return the step that takes most memory: the budget's tokens, at the end of the longest contexts.

    As many tokens of a prompt as may be are scored, and all requests want log-probabilities. All blocks of
    all block tables are block 0, so a cache of one block is enough; what is computed does not matter, only
    how much.
    """
    plan = _warm_up_plan(config, config.max_num_batched_tokens, longest, config.max_num_seqs)
    table = [0] * -(-longest // config.block_size)
    num_scored = max(1, config.scoring_bytes // (4 * vocab_size))
    sampling = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9, logprobs=20, prompt_logprobs=20)
    return StepPlan(
        [
            replaced(
                request,
                num_computed_tokens=longest - len(request.token_ids),
                block_ids=table,
                prompt_token_ids=[0] * longest,
                num_scored=min(len(request.token_ids) - 1, num_scored) if index == 0 else 0,
                sampling=sampling,
            )
            if len(request.token_ids) > 1
            else replaced(request, sampling=sampling)
            for index, request in enumerate(plan.requests)
        ]
    )


def _warm_up_plan(config: EngineConfig, num_tokens: int, longest: int, num_requests: int) -> StepPlan:
    """A step of prefill chunks, each at most `longest`, and single tokens for the rest of the requests.

    All of them read and write the first blocks of the cache; what those hold does not matter yet.
    """
    lengths: list[int] = []
    while num_tokens > 0 and len(lengths) < num_requests:
        lengths.append(min(num_tokens, longest))
        num_tokens -= lengths[-1]
    lengths += [1] * (num_requests - len(lengths))
    return StepPlan(
        [
            ScheduledRequest(
                request_id=f"warm-up-{index}",
                token_ids=[0] * length,
                num_computed_tokens=0,
                block_ids=list(range(-(-length // config.block_size))),
                samples=True,
                sampling=SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9),
                seed=0,
                prompt_token_ids=[0] * length,
                output_token_ids=[],
            )
            for index, length in enumerate(lengths)
        ]
    )
