"""The command line: `stoker-runtime serve` and `stoker-runtime fetch`. Reads settings, wires, runs.

Every flag can also be given as an environment variable, STOKER_ and the flag's name; a flag wins over it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stoker_runtime import __version__, flags, logs, machine, termination
from stoker_runtime.config import (
    ASYNC_SCHEDULINGS,
    DEVICES,
    DTYPES,
    KERNEL_CHOICES,
    KV_CACHE_DTYPES,
    LOG_LEVELS,
    QUANTIZATIONS,
    SPECULATIVES,
    EngineConfig,
    LogLevel,
    ServerConfig,
    parse_bytes,
    root_path_of,
)
from stoker_runtime.errors import ConfigError, StokerError

logger = logging.getLogger(__name__)

_SETTINGS = {"auto_envvar_prefix": "STOKER", "show_default": True, "max_content_width": 110}
_TERMINATED = 128 + signal.SIGTERM
_INTERRUPTED = 128 + signal.SIGINT


def _option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, show_envvar=True, **settings)


_log_level = _option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", help="Least severe level that is logged."
)


@click.group(context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="stoker-runtime")
def cli() -> None:
    """Serve a language model behind an OpenAI-compatible API."""


@cli.command(context_settings=_SETTINGS)
@_option(
    "--model", required=True, help="A folder, a .gguf file, hf://ORG/NAME[@REVISION] or s3://BUCKET/FOLDER."
)
@_option("--revision", help="Branch, tag or commit of a model that is downloaded.")
@_option(
    "--served-model-name",
    multiple=True,
    help="Name that clients ask for; may be repeated, answers carry the first.  [default: --model as given]",
)
@_option("--host", default=ServerConfig.host, help="Address to listen on; all, IPv4 and IPv6, by default.")
@_option(
    "--port", metavar="PORT", default=str(ServerConfig.port), help="Port to listen on; 0 picks a free one."
)
@_option("--device", type=click.Choice(DEVICES), default="auto", help="auto: CUDA where there is a GPU.")
@_option("--dtype", type=click.Choice(DTYPES), default="auto", help="auto: what the device is fast at.")
@_option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    default="none",
    help="Of the weights; int8 and gguf (a GGUF file's own): CPUs with AVX512-BF16, fp8: CUDA.",
)
@_option(
    "--max-model-len", type=int, help="Tokens of prompt and output in one request.  [default: the model's]"
)
@_option("--max-num-seqs", type=int, help="Requests in one step.  [default: 64 on a CPU, 256 on CUDA]")
@_option(
    "--max-num-batched-tokens", type=int, help="Tokens in one step.  [default: 256 on a CPU, 8192 on CUDA]"
)
@_option(
    "--max-prefill-tokens-beside-decodes",
    type=int,
    help="Prompt tokens in a step that decodes.  [default: measured on a CPU, 2048 on CUDA; more for many]",
)
@_option(
    "--long-prompt-tokens",
    type=int,
    help="Prompts with more to compute make way for shorter ones.  [default: 256 on a CPU, 2048 on CUDA]",
)
@_option(
    "--max-recorded-tokens",
    type=int,
    help="Tokens of a step with prompts that is recorded as a CUDA graph.  [default: 512 on CUDA]",
)
@_option(
    "--speculative",
    type=click.Choice(SPECULATIVES),
    default="none",
    help="ngram: guess tokens from the request's own text; the answer stays the same.",
)
@_option(
    "--async-scheduling",
    type=click.Choice(ASYNC_SCHEDULINGS),
    default=EngineConfig.async_scheduling,
    help="Plan a step while the one before is computed.  auto: where Triton computes, on CUDA.",
)
@_option(
    "--kernel-choices",
    type=click.Choice(KERNEL_CHOICES),
    default=EngineConfig.kernel_choices,
    help="On CUDA, choose kernels by what they take there.  defaults: the same in every start.",
)
@_option("--block-size", type=int, default=EngineConfig.block_size, help="Tokens in one KV block.")
@_option(
    "--memory-fraction",
    type=float,
    default=EngineConfig.memory_fraction,
    help="Share of the device's memory for weights, activations and KV.",
)
@_option(
    "--kv-cache-memory",
    metavar="BYTES",
    help="Size of the KV cache, such as 2Gi.  [default: up to 512Mi on a CPU, --memory-fraction on CUDA]",
)
@_option(
    "--kv-cache-dtype",
    type=click.Choice(KV_CACHE_DTYPES),
    default="auto",
    help="Number format of keys and values; auto: --dtype, fp8: half as many bytes, on CUDA.",
)
@_option("--no-prefix-caching", is_flag=True, help="Compute every prompt from its first token.")
@_option(
    "--num-threads", type=int, help="CPU threads that compute.  [default: the CPUs this process may use]"
)
@_option(
    "--chat-template",
    metavar="TEMPLATE",
    help="A file with a Jinja template, the template itself, or the name of one that the model has.",
)
@_option(
    "--sanitize-control-tokens",
    is_flag=True,
    help="Take control tokens that a client writes into a message for plain text.",
)
@_option("--max-queue", type=int, default=ServerConfig.max_queue, help="Waiting requests before 429.")
@_option("--max-request-bytes", metavar="BYTES", default="4Mi", help="Size of a request body before 413.")
@_option(
    "--step-timeout-s",
    type=float,
    default=ServerConfig.step_timeout_s,
    help="Seconds that one step may take before the engine counts as hung.",
)
@_option(
    "--sse-keep-alive-s",
    type=float,
    default=ServerConfig.sse_keep_alive_s,
    help="Seconds without an event before a stream gets a comment; 0 is never.",
)
@_option(
    "--shutdown-delay-s",
    type=float,
    default=ServerConfig.shutdown_delay_s,
    help="Seconds after SIGTERM in which new connections are still served.",
)
@_option(
    "--drain-timeout-s",
    type=float,
    default=ServerConfig.drain_timeout_s,
    help="Seconds after that for requests in flight.",
)
@_option(
    "--keep-alive-timeout-s",
    type=int,
    default=ServerConfig.keep_alive_timeout_s,
    help="Seconds that a connection may be idle; more than proxies before it keep one.",
)
@_option("--root-path", default="", help="Path under which a proxy offers the server, such as /llm.")
@_option(
    "--api-key",
    multiple=True,
    help="Key for clients; may be repeated. Anyone on the machine sees a flag: use the variable or a file.",
)
@_option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with such keys, one a line.",
)
@_option(
    "--drain-key",
    help="Key for POST /drain; without one nobody may. Anyone on the machine sees a flag: use the variable.",
)
@_option(
    "--allowed-origins",
    multiple=True,
    help="Origin whose pages may ask from a browser, * for all; may be repeated or a JSON list.",
)
@_option(
    "--allowed-methods",
    multiple=True,
    help="Method that they may use; likewise.  [default: all]",
)
@_option(
    "--allowed-headers",
    multiple=True,
    help="Header that they may send; likewise.  [default: all]",
)
@_option("--allow-credentials", is_flag=True, help="Let them send cookies and the like.")
@_log_level
@_option("--seed", type=int, help="Makes sampling without a seed of its own repeatable.  [default: random]")
def serve(model: str, revision: str | None, log_level: LogLevel, **options: Any) -> int:
    """Serve one model until SIGTERM.

    Exit status: 0 drained, 1 the engine crashed, 2 a setting cannot work, 3 the model cannot be loaded
    or memory ran out.
    """
    server_config, engine_config = configs(model, log_level, options)
    logs.configure(log_level, "server")
    # Imported when needed: `fetch` and --help must not wait for a web framework.
    from stoker_runtime.server.lifecycle import run_server
    from stoker_runtime.sources import resolve

    path = resolve(model, revision)
    return run_server(server_config, replace(engine_config, model=str(path)))


@cli.command(context_settings=_SETTINGS)
@_option("--source", required=True, help="hf://ORG/NAME[@REVISION] or s3://BUCKET/FOLDER.")
@_option(
    "--destination", required=True, type=click.Path(path_type=Path), help="Folder that later is HF_HOME."
)
@_option("--token-env", default="HF_TOKEN", help="Environment variable that holds the access token, if any.")
@_log_level
def fetch(source: str, destination: Path, token_env: str, log_level: LogLevel) -> int:
    """Download a model into a folder, as an init container does.

    Exit status: 0 downloaded, 2 a setting cannot work, 3 the model cannot be had.
    """
    logs.configure(log_level, "fetch")
    from stoker_runtime import sources

    path = sources.fetch(source, destination, token=os.environ.get(token_env) or None)
    logger.info("downloaded", extra={"source": source, "path": str(path)})
    return 0


def configs(model: str, log_level: LogLevel, options: dict[str, Any]) -> tuple[ServerConfig, EngineConfig]:
    """Turn the flags of `serve` into the settings of both processes.

    Args:
        model: what --model says.
        log_level: for both processes.
        options: the other flags by their parameter name; None where a flag was not given.

    Raises:
        ConfigError: a value cannot work; the text names the flag.
    """
    if not model.strip():
        raise ConfigError(
            "--model is empty; give a folder, a .gguf file, hf://ORG/NAME or s3://BUCKET/FOLDER"
        )
    given = {name: value for name, value in options.items() if value is not None}
    names = given.pop("served_model_name") or (model,)
    given["port"] = flags.port(given["port"])
    given["max_request_bytes"] = parse_bytes(given["max_request_bytes"], "--max-request-bytes")
    if "kv_cache_memory" in given:
        given["kv_cache_bytes"] = parse_bytes(given.pop("kv_cache_memory"), "--kv-cache-memory")
    given["prefix_caching"] = not given.pop("no_prefix_caching")
    given.setdefault("num_threads", machine.usable_cpus())
    given["api_keys"] = flags.api_keys(given.pop("api_key"), given.pop("api_key_file", None))
    given["root_path"] = root_path_of(given["root_path"])
    given["allowed_origins"] = flags.origins(given["allowed_origins"])
    given["allowed_methods"] = flags.methods(given["allowed_methods"])
    given["allowed_headers"] = flags.names("--allowed-headers", given["allowed_headers"]) or ("*",)
    server = {name: given.pop(name) for name in _SERVER_FLAGS if name in given}
    return (
        ServerConfig(served_model_names=names, model=model, log_level=log_level, **server),
        EngineConfig(model=model, log_level=log_level, **given),
    )


_SERVER_FLAGS = (
    *("host", "port", "max_queue", "max_request_bytes"),
    *("step_timeout_s", "shutdown_delay_s", "drain_timeout_s"),
    *("keep_alive_timeout_s", "sse_keep_alive_s"),
    *("root_path", "api_keys", "drain_key"),
    *("allowed_origins", "allowed_methods", "allowed_headers", "allow_credentials"),
    *("chat_template", "sanitize_control_tokens"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; None takes sys.argv."""
    # As a container's first process we would ignore SIGTERM otherwise; the server replaces this once it can
    # drain. Before that nothing is lost: a cut download goes on where it stopped.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    try:
        return int(cli.main(arguments, prog_name="stoker-runtime", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return _failed(termination.INVALID_CONFIG, error.format_message())
    except click.Abort:
        return _INTERRUPTED
    except StokerError as error:
        reason = termination.reason_of(error)
        if logs.is_configured():
            logger.error("%s", error, extra={"reason": reason})
        else:  # the flags themselves are wrong, and a person reads it
            click.echo(f"stoker-runtime: {error}", err=True)
        return _failed(reason, str(error))


def _failed(reason: str, message: str) -> int:
    termination.report(reason, message)
    return termination.exit_status(reason)


if __name__ == "__main__":
    sys.exit(main())
