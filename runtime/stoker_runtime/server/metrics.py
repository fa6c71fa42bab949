"""What /metrics says, under vLLM's metric names: dashboards, scalers and pickers made for it work unchanged.

Latencies are measured here, from a request's arrival to the moment its tokens reached this process; the
engine's gauges and totals are read from its latest stats when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stoker_runtime.messages import EngineReady, EngineStats

_LABELS = ["model_name", "engine"]
_ENGINE = "0"
# Seconds. The edges are vLLM's, so that quantiles of both can be compared.
_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


def _token_buckets(max_model_len: int) -> list[float]:
    """Return 1, 2, 5, 10, 20, ... up to the model's length."""
    edges = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    return [float(edge) for edge in edges if edge <= max_model_len] or [1.0]


_MAX_TOKENS = _token_buckets(1_000_000)
_STEP_TOKENS = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
_CHOICES = [1, 2, 5, 10, 20]
_PREEMPTIONS = [1, 2, 3, 4, 5, 10, 20]


class Metrics:
    """All metrics of one server process, in a registry of its own.

    Args:
        model_name: the name answers carry; a label of every metric.
        stats: returns the engine's latest stats.
        ready: returns what the engine said of itself; None until it has.
    """

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], ready: Callable[[], EngineReady | None]
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(model_name, stats, ready))
        ProcessCollector(registry=self._registry)
        self._labels = (model_name, _ENGINE)
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Tokens of a step, of prompts and of output.", _STEP_TOKENS, ""
        )
        self._add_latencies()
        self._add_sizes()
        self._add_counters()

    def _add_latencies(self) -> None:
        self.ttft = self._histogram("time_to_first_token", "Arrival to the first token.", _TTFT_S)
        self.itl = self._histogram(
            "inter_token_latency",
            "Between two tokens of a request.",
            _ITL_S,
            old_name="time_per_output_token",  # what older dashboards call it
        )
        self.per_token = self._histogram(
            "request_time_per_output_token", "Mean time per output token after the first.", _ITL_S
        )
        self.e2e = self._histogram("e2e_request_latency", "Arrival to the last token.", _LATENCY_S)
        self.queue = self._histogram("request_queue_time", "Arrival to the first admission.", _LATENCY_S)
        self.prefill = self._histogram(
            "request_prefill_time", "First admission to the first token.", _LATENCY_S
        )
        self.decode = self._histogram("request_decode_time", "First to last token.", _LATENCY_S)
        self.inference = self._histogram(
            "request_inference_time", "First admission to the last token.", _LATENCY_S
        )

    def _add_sizes(self) -> None:
        self.prompt_sizes = self._histogram("request_prompt_tokens", "Prompt tokens.", _MAX_TOKENS, unit="")
        self.output_sizes = self._histogram(
            "request_generation_tokens", "Output tokens.", _MAX_TOKENS, unit=""
        )
        self.max_output_sizes = self._histogram(
            "request_max_num_generation_tokens",
            "Output tokens of a prompt's longest choice.",
            _MAX_TOKENS,
            "",
        )
        self.max_tokens = self._histogram(
            "request_params_max_tokens", "Output tokens that a request may have.", _MAX_TOKENS, ""
        )
        self.n = self._histogram("request_params_n", "Choices per prompt.", _CHOICES, "")
        self.preemptions = self._histogram(
            "request_num_preemptions", "Times that a request gave its KV blocks back.", _PREEMPTIONS, ""
        )

    def _add_counters(self) -> None:
        self.prompt_tokens = self._counter(
            "vllm:prompt_tokens", "Prompt tokens of requests that began to answer."
        )
        self.output_tokens = self._counter("vllm:generation_tokens", "Output tokens.")
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by how.",
            [*_LABELS, "finished_reason"],
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, reason)
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because of a full queue.",
            [*_LABELS, "reason"],
            registry=self._registry,
        ).labels(*self._labels, "max_num_queued_reqs")  # vLLM's name for what --max-queue is here
        self._http = Counter(
            "http_requests",
            "HTTP requests answered.",
            ["method", "handler", "status"],
            registry=self._registry,
        )

    def _histogram(
        self, name: str, text: str, buckets: Iterable[float], unit: str = "_seconds", old_name: str = ""
    ) -> Histogram:
        metric = Histogram(
            f"vllm:{name}{unit}", text, _LABELS, buckets=list(buckets), registry=self._registry
        )
        if old_name:
            self._registry.register(_Renamed(metric, f"vllm:{name}{unit}", f"vllm:{old_name}{unit}"))
        return metric.labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(*self._labels)

    def stepped(self, num_tokens: int) -> None:
        """Note the tokens of a step: those that it gave, and of prompts that were complete with it."""
        self._step_tokens.observe(num_tokens)

    def rejected(self) -> None:
        """Count an inference request that the queue has no room for."""
        self._rejections.inc()

    def prompt_answered(self, num_output_tokens: Sequence[int]) -> None:
        """Note that a prompt has all its choices, given the size of each."""
        self.n.observe(len(num_output_tokens))
        self.max_output_sizes.observe(max(num_output_tokens))

    def ended(self, reason: str) -> None:
        """Count a request that ended: stop, length, abort or error."""
        self._success.labels(*self._labels, reason).inc()

    def answered(self, method: str, handler: str, status: int) -> None:
        """Count an HTTP response."""
        self._http.labels(method, handler, f"{status // 100}xx").inc()

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)


class RequestTimer:
    """Times one engine request.

    Args:
        metrics: where observations go.
        arrival_s: when its HTTP request came, on the clock of the other times.
        num_prompt_tokens: tokens of its prompt.
        max_tokens: output tokens that it may have.
    """

    def __init__(self, metrics: Metrics, arrival_s: float, num_prompt_tokens: int, max_tokens: int) -> None:
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens
        self._num_output_tokens = 0
        self._admitted_s: float | None = None
        self._last_s = arrival_s
        self._has_ended = False
        self.first_s: float | None = None
        self.num_preemptions = 0  # so far

    def tokens(self, at_s: float, num_tokens: int, queue_s: float | None) -> None:
        """Note output tokens that arrived at a time; queue_s comes with the first of them."""
        if num_tokens == 0:
            return
        if queue_s is not None:
            self._admitted_s = self._arrival_s + queue_s
            self._metrics.queue.observe(queue_s)
        if self.first_s is None:
            self.first_s = at_s
            self._metrics.ttft.observe(at_s - self._arrival_s)
            self._metrics.prompt_tokens.inc(self._num_prompt_tokens)
            if self._admitted_s is not None:
                self._metrics.prefill.observe(at_s - self._admitted_s)
        else:
            self._metrics.itl.observe((at_s - self._last_s) / num_tokens)
        self._last_s = at_s
        self._num_output_tokens += num_tokens
        self._metrics.output_tokens.inc(num_tokens)

    def end(self, reason: str) -> None:
        """Note the end; later calls change nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        metrics = self._metrics
        metrics.ended(reason)
        if reason not in ("stop", "length") or self.first_s is None:
            return
        metrics.e2e.observe(self._last_s - self._arrival_s)
        metrics.decode.observe(self._last_s - self.first_s)
        metrics.prompt_sizes.observe(self._num_prompt_tokens)
        metrics.output_sizes.observe(self._num_output_tokens)
        metrics.max_tokens.observe(self._max_tokens)
        metrics.preemptions.observe(self.num_preemptions)
        if self._num_output_tokens > 1:
            metrics.per_token.observe((self._last_s - self.first_s) / (self._num_output_tokens - 1))
        if self._admitted_s is not None:
            metrics.inference.observe(self._last_s - self._admitted_s)


class _EngineCollector(Collector):
    """The engine's gauges and totals, read at scrape time."""

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], ready: Callable[[], EngineReady | None]
    ) -> None:
        self._labels = [model_name, _ENGINE]
        self._stats = stats
        self._ready = ready

    def collect(self) -> Iterable[Metric]:
        """Return the families as of now."""
        stats = self._stats()
        gauges = (
            ("vllm:num_requests_running", "Requests in the current step.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests waiting for admission.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Used KV blocks of all, 0 to 1.", stats.kv_usage),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        yield self._waiting_by_reason(stats)
        counters = (
            ("vllm:num_preemptions", "Requests preempted to free KV blocks.", stats.num_preemptions),
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prefix_queries,
            ),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits),
            ("vllm:spec_decode_num_drafts", "Guesses at what comes next.", stats.num_drafts),
            ("vllm:spec_decode_num_draft_tokens", "Guessed tokens.", stats.num_draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens kept.", stats.num_accepted_tokens),
        )
        for name, text, value in counters:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        ready = self._ready()
        if ready is not None:
            info = GaugeMetricFamily(
                "vllm:cache_config_info",
                "The KV cache's shape.",
                labels=[*_LABELS, "block_size", "num_gpu_blocks", "cache_dtype"],
            )
            info.add_metric([*self._labels, str(ready.block_size), str(ready.num_blocks), ready.dtype], 1)
            yield info

    def _waiting_by_reason(self, stats: EngineStats) -> Metric:
        """Return who waits for what. All wait for blocks, a place or tokens of a step: nothing defers any."""
        gauge = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Requests waiting, by reason.", labels=[*_LABELS, "reason"]
        )
        gauge.add_metric([*self._labels, "capacity"], stats.num_waiting)
        gauge.add_metric([*self._labels, "deferred"], 0)
        return gauge


class _Renamed(Collector):
    """A metric under a second name, so that it is observed only once."""

    def __init__(self, metric: Histogram, name: str, other_name: str) -> None:
        self._metric = metric
        self._name = name
        self._other_name = other_name

    def collect(self) -> Iterable[Metric]:
        """Return the metric as of now, under its other name."""
        for family in self._metric.collect():
            renamed = Metric(self._other_name, family.documentation, family.type)
            renamed.samples = [
                sample._replace(name=sample.name.replace(self._name, self._other_name))
                for sample in family.samples
            ]
            yield renamed
