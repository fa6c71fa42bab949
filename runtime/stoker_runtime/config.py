"""Every setting of the runtime, checked once: what the flags and STOKER_* variables become.

Two frozen dataclasses, one per process. A value that cannot work raises ConfigError, which names the flag and
the fix. 0 stands for "automatic" where a default depends on the device or the model;
`EngineConfig.for_device` fills those in once the engine knows what it runs on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import msgspec

from stoker_runtime.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["none", "int8", "fp8", "gguf"]
KvCacheDtype = Literal["auto", "fp8"]
Speculative = Literal["none", "ngram"]
AsyncScheduling = Literal["auto", "on", "off"]
KernelChoices = Literal["auto", "defaults"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEVICES: tuple[Device, ...] = get_args(Device)
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
KV_CACHE_DTYPES: tuple[KvCacheDtype, ...] = get_args(KvCacheDtype)
SPECULATIVES: tuple[Speculative, ...] = get_args(Speculative)
ASYNC_SCHEDULINGS: tuple[AsyncScheduling, ...] = get_args(AsyncScheduling)
KERNEL_CHOICES: tuple[KernelChoices, ...] = get_args(KernelChoices)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

MIB = 1024**2
# Longer than the longest that proxies in common use keep an idle connection to a server, so that they close
# it, not we: a request that is sent just when we close is lost and answered with a 502. nginx and Amazon's
# ALB take 60 s, Traefik and Go's clients 90 s, Azure's load balancer 4 min, Oracle's 5 min, Google's a fixed
# 10 min, for which its documentation asks servers to wait longer and names 620 s. Envoy's is an hour unless
# set: it tries again, or is told less.
# Source: cloud.google.com/load-balancing/docs/https, "Timeouts and retries".
KEEP_ALIVE_TIMEOUT_S = 620
MAX_CPU_KV_CACHE_BYTES = 512 * MIB
# Per step: what a device computes in about 200 ms of prefill on a CPU, and enough to fill a GPU.
_DEFAULT_BATCHED_TOKENS = {"cpu": 256, "cuda": 8192}
_DEFAULT_SEQS = {"cpu": 64, "cuda": 256}
# On a CPU: until steps have been timed, see core.pace. On CUDA: Sarathi-Serve's larger chunk. What other
# requests add, what a context costs and what steps have taken only count while the limit is automatic.
_DEFAULT_BESIDE_DECODES = {"cpu": 32, "cuda": 2048}
# The aim is a 99th percentile of the gaps of 2.5 times their median without prompts; where the server and its
# clients have no cores of their own, what they do takes part of that.
_PREFILL_STRETCH = {"cpu": 165, "cuda": 0}
# With fewer a batch of 32 with mixed lengths empties faster than it fills (bench/scheduler.py): 465 tokens/s
# with none, 522 with 4 and 558 with 6, as many as without a limit.
_PREFILL_PER_REQUEST = {"cpu": 6, "cuda": 6}
FEW_REQUESTS = 8  # with no more than these, short gaps between tokens count more than throughput
_PREFILL_CONTEXT_PRICE = {"cpu": 1536, "cuda": 0}
# Rows that cost little more than one: a CPU's weights pass through its caches once for some 12, and a GPU is
# busy computing only beyond some 200.
_DRAFT_ROWS = {"cpu": 12, "cuda": 128}
# Handing out a step's tokens takes the server two or three tenths of a millisecond. On a CPU it shares a core
# with a computing thread; whoever wakes up meanwhile, a client or a proxy, makes the kernel give the core to
# that thread until the next tick, some 5 ms later (seen in a trace of Linux 6.18 with ticks of 4 ms).
_HANDOVER_S = {"cpu": 0.0004, "cuda": 0.0}
# Of the logits of prompt tokens that are scored in a step: on a CPU more than a default step has of most
# vocabularies. On a GPU as many rows as make reading the weights a small part of a step, and little memory.
_SCORING_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
# By arithmetic, not by measurement: with 512 tokens a step of an 8B model needs 8 Tflop, which takes a GPU
# longer than its launches take the host. Smaller models gain from more.
_DEFAULT_RECORDED_TOKENS = {"cpu": 0, "cuda": 512}
# About 100 ms of prefill on a CPU and 60 ms on a GPU: what another short prompt may wait for.
_DEFAULT_LONG_PROMPT = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine process needs to know; travels to it as JSON.

    Raises:
        ConfigError: a value is out of range or two values exclude each other.
    """

    model: str  # a directory or a .gguf file on this machine
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "none"  # of the weights, when they are loaded
    kv_cache_dtype: KvCacheDtype = "auto"  # auto: that of the weights
    max_model_len: int = 0  # prompt + output tokens of one request; 0: the model's own limit
    max_num_seqs: int = 0  # requests in one step; 0: by device
    max_num_batched_tokens: int = 0  # tokens in one step; 0: by device
    max_prefill_tokens_beside_decodes: int = 0  # prompt tokens in a step that also decodes; 0: by device
    prefill_per_request: int = 0  # see core.budgets; for_device sets it while the one above is automatic
    prefill_context_price: int = 0  # likewise
    prefill_stretch: int = 0  # likewise
    long_prompt_tokens: int = 0  # a prompt with more to compute makes way for shorter ones; 0: by device
    max_recorded_tokens: int = 0  # of a step with prompt tokens that is recorded, on CUDA; 0: automatic
    speculative: Speculative = "none"  # how tokens are guessed ahead
    async_scheduling: AsyncScheduling = "auto"  # whether a step is planned while the one before is computed
    kernel_choices: KernelChoices = "auto"  # on CUDA, whether kernels are chosen by what they take there
    block_size: int = 16  # tokens per KV block
    memory_fraction: float = 0.90  # of the device's memory, for weights, activations and KV
    kv_cache_bytes: int = 0  # 0: by device, see cpu_kv_cache_bytes and memory_fraction
    prefix_caching: bool = True
    num_threads: int = 1  # CPU threads that compute
    seed: int | None = None  # for requests without a seed of their own; None: different in every process
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        _one_of("--device", self.device, DEVICES)
        _one_of("--dtype", self.dtype, DTYPES)
        _one_of("--quantization", self.quantization, QUANTIZATIONS)
        _one_of("--kv-cache-dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("--speculative", self.speculative, SPECULATIVES)
        _one_of("--async-scheduling", self.async_scheduling, ASYNC_SCHEDULINGS)
        _one_of("--kernel-choices", self.kernel_choices, KERNEL_CHOICES)
        _one_of("--log-level", self.log_level, LOG_LEVELS)
        _at_least("--max-model-len", self.max_model_len, 0)
        _at_least("--max-num-seqs", self.max_num_seqs, 0)
        _at_least("--max-num-batched-tokens", self.max_num_batched_tokens, 0)
        _at_least("--max-prefill-tokens-beside-decodes", self.max_prefill_tokens_beside_decodes, 0)
        _at_least("--long-prompt-tokens", self.long_prompt_tokens, 0)
        _at_least("--max-recorded-tokens", self.max_recorded_tokens, 0)
        _at_least("--kv-cache-memory", self.kv_cache_bytes, 0)
        _at_least("--num-threads", self.num_threads, 1)
        if self.async_scheduling == "on" and self.speculative != "none":
            raise ConfigError(
                f"--async-scheduling is on and --speculative is {self.speculative}, which needs a step's "
                "tokens before the next is planned; turn one of them off"
            )
        if self.max_model_len == 1:
            raise ConfigError("--max-model-len is 1, which leaves no room for output; use 2 or more")
        if not 1 <= self.block_size <= 1024:
            raise ConfigError(f"--block-size is {self.block_size}; use 1 to 1024 tokens, 16 fits most models")
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ConfigError(f"--memory-fraction is {self.memory_fraction}; use more than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; use 0 to 2^63 - 1")
        if self.max_num_seqs and 0 < self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                "raise --max-num-batched-tokens or lower --max-num-seqs, because a step needs a token for "
                f"each request: they are {self.max_num_batched_tokens} and {self.max_num_seqs}"
            )

    def for_device(self, device: str) -> EngineConfig:
        """Fill in what depends on the device. Idempotent.

        Args:
            device: what the engine runs on: "cpu", "cuda" or "cuda:0".
        """
        kind: Literal["cpu", "cuda"] = "cuda" if device.startswith("cuda") else "cpu"
        tokens, seqs = self.max_num_batched_tokens, self.max_num_seqs
        seqs = seqs or min(_DEFAULT_SEQS[kind], tokens or _DEFAULT_SEQS[kind])
        tokens = tokens or max(_DEFAULT_BATCHED_TOKENS[kind], seqs)
        config = replace(
            self,
            device=kind,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            long_prompt_tokens=self.long_prompt_tokens or _DEFAULT_LONG_PROMPT[kind],
            max_recorded_tokens=min(self.max_recorded_tokens or _DEFAULT_RECORDED_TOKENS[kind], tokens),
        )
        if self.max_prefill_tokens_beside_decodes:
            return config
        return replace(
            config,
            max_prefill_tokens_beside_decodes=_DEFAULT_BESIDE_DECODES[kind],
            prefill_per_request=_PREFILL_PER_REQUEST[kind],
            prefill_context_price=_PREFILL_CONTEXT_PRICE[kind],
            prefill_stretch=_PREFILL_STRETCH[kind],
        )

    @property
    def draft_rows(self) -> int:
        """Tokens of a step up to which guesses are added to it; of a configuration `for_device`."""
        if self.speculative == "none":
            return 0
        return min(self.max_num_batched_tokens, _DRAFT_ROWS["cpu" if self.device == "cpu" else "cuda"])

    @property
    def handover_s(self) -> float:
        """Seconds before a long step in which the server has the cores; of a configuration `for_device`."""
        return _HANDOVER_S["cpu" if self.device == "cpu" else "cuda"]

    @property
    def scoring_bytes(self) -> int:
        """See core.budgets; of a configuration `for_device`."""
        return _SCORING_BYTES["cpu" if self.device == "cpu" else "cuda"]

    def cpu_kv_cache_bytes(self, available_bytes: int) -> int:
        """Return the KV cache's size on a CPU, given what is still free once the weights are loaded.

        The automatic size stays small, because a CPU pod shares its memory with everything else on the node:
        half of `memory_fraction` of what is free, and never above MAX_CPU_KV_CACHE_BYTES.
        """
        if self.kv_cache_bytes:
            return self.kv_cache_bytes
        return min(MAX_CPU_KV_CACHE_BYTES, int(available_bytes * self.memory_fraction / 2))

    def to_json(self) -> str:
        """Return the JSON that from_json reads."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> EngineConfig:
        """Read to_json's text.

        Raises:
            ConfigError: it is not an EngineConfig, or a value is out of range.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigError(f"the engine's configuration cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the server process needs to know.

    Raises:
        ConfigError: a value is out of range, or one means nothing without another.
    """

    served_model_names: tuple[str, ...]  # names clients may ask for; the first is the one answers carry
    model: str = ""  # what is served, as it was given
    host: str = ""  # address to listen on; empty: all, IPv4 and IPv6, because a pod may have either or both
    port: int = 8000
    max_queue: int = 512  # requests that may wait for the engine before 429
    max_request_bytes: int = 4 * MIB  # body size before 413
    step_timeout_s: float = 300.0  # of one step; an engine silent for longer counts as hung
    sse_keep_alive_s: float = 15.0  # without an event before a stream gets a comment; 0: never
    shutdown_delay_s: float = 5.0  # after SIGTERM, new connections are still served this long
    drain_timeout_s: float = 25.0  # then this long for requests in flight
    keep_alive_timeout_s: int = KEEP_ALIVE_TIMEOUT_S  # of a connection between two requests
    root_path: str = ""  # under which a proxy offers the server: "" or like "/llm", see root_path_of
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # any will do; none: nobody needs one
    drain_key: str | None = field(default=None, repr=False)  # who has it may drain the server; None: nobody
    allowed_origins: tuple[str, ...] = ()  # whose pages may ask from a browser, "*" for all; none: no CORS
    allowed_methods: tuple[str, ...] = ("*",)  # that they may use
    allowed_headers: tuple[str, ...] = ("*",)  # that they may send
    allow_credentials: bool = False  # whether they may send what the browser knows of its user
    # instead of the model's own: a file, a template or one of the model's names
    chat_template: str | None = None
    sanitize_control_tokens: bool = False  # control tokens that a client writes into a message are plain text
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(name.strip() for name in self.served_model_names):
            raise ConfigError("--served-model-name is empty; give the name that clients put in `model`")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}; use 0 to 65535")
        if self.chat_template is not None and not self.chat_template.strip():
            raise ConfigError("--chat-template is empty; give a file, a template or the name of one")
        _one_of("--log-level", self.log_level, LOG_LEVELS)
        _at_least("--max-queue", self.max_queue, 1)
        _at_least("--max-request-bytes", self.max_request_bytes, 1)
        if not self.step_timeout_s > 1:  # an idle engine speaks once a second
            raise ConfigError(f"--step-timeout-s is {self.step_timeout_s}; use more than 1")
        _at_least("--sse-keep-alive-s", self.sse_keep_alive_s, 0)
        _at_least("--shutdown-delay-s", self.shutdown_delay_s, 0)
        _at_least("--drain-timeout-s", self.drain_timeout_s, 0)
        _at_least("--keep-alive-timeout-s", self.keep_alive_timeout_s, 1)
        if not _ROOT_PATH.fullmatch(self.root_path):
            raise ConfigError(f"--root-path is {self.root_path!r}; use a path like /llm, without . and ..")
        if not all(_API_KEY.fullmatch(key) for key in self.api_keys):  # not shown: it may be almost right
            raise ConfigError(
                "--api-key, or a line of --api-key-file, is empty or holds what no header can; "
                "use ASCII without spaces"
            )
        if self.drain_key is not None and not _API_KEY.fullmatch(self.drain_key):
            raise ConfigError(
                "--drain-key is empty or holds what no header can; use ASCII without spaces, or leave it out"
            )
        self._check_cors()

    def _check_cors(self) -> None:
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--allowed-origins has {origin!r}; use * or origins as browsers send them, such as "
                    "https://chat.example.com"
                )
        for flag, names in (
            ("--allowed-methods", self.allowed_methods),
            ("--allowed-headers", self.allowed_headers),
        ):
            if not names or not all(_TOKEN.fullmatch(name) for name in names):
                raise ConfigError(f"{flag} is {', '.join(names)!r}; use * or names")
        plain = (("*",), ("*",), False)
        if not self.allowed_origins and plain != (
            self.allowed_methods,
            self.allowed_headers,
            self.allow_credentials,
        ):
            raise ConfigError(
                "--allowed-methods, --allowed-headers and --allow-credentials do nothing without "
                "--allowed-origins; give the origins"
            )


_ROOT_PATH = re.compile(r"(/(?!\.\.?(/|\Z))[A-Za-z0-9._~-]+)*")
_API_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@,*A-Z]+")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2


def root_path_of(text: str) -> str:
    """Return a root path in its one form: with a slash before it, none behind it and none twice."""
    return "".join(f"/{part}" for part in text.strip().split("/") if part)


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(rf"([0-9]{{1,30}}(?:\.[0-9]{{1,9}})?)({'|'.join(_UNITS)})")


def parse_bytes(text: str, flag: str) -> int:
    """Read a number of bytes, plain or as a Kubernetes quantity: ``1073741824``, ``1Gi``, ``1.5G``.

    Raises:
        ConfigError: the text is neither; names the flag.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or (value := int(float(match[1]) * _UNITS[match[2]])) >= 2**63:
        raise ConfigError(f"{flag} is {text!r}; use bytes or a quantity such as 512Mi or 2Gi")
    return value


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{flag} is {value!r}; use one of {', '.join(choices)}")


def _at_least(flag: str, value: float, minimum: int) -> None:
    if not value >= minimum:
        raise ConfigError(f"{flag} is {value}; use {minimum} or more")
