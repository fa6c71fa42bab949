"""Environment variables that reach the hub's libraries, and what goes wrong through them. Pure.

Certificates, proxies and endpoints are given in variables that the libraries read by themselves, and whose
failures name neither the variable nor its value.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence

from stoker_runtime.errors import ConfigError

_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse what the hub's library would fail on while it is imported.

    Raises:
        ConfigError: names the variable.
    """
    for name in _SECONDS:
        value = environ.get(name, "")
        if value and not (value.isascii() and value.isdigit()):
            raise ConfigError(f"{name} is {value!r}; use a whole number of seconds")


def environment_fault(causes: Sequence[BaseException], environ: Mapping[str, str]) -> str | None:
    """Say which variable a failed look-up or download points to, and what to do about it.

    Args:
        causes: the failure and what caused it.
        environ: of this process.

    Returns:
        None where none of them explains it.
    """
    kinds = {type(cause).__name__ for cause in causes}
    certificates = environ.get("SSL_CERT_FILE")
    if certificates and any(
        isinstance(cause, FileNotFoundError) and cause.filename is None for cause in causes
    ):
        return f"SSL_CERT_FILE is {certificates!r}, and there is no such file"
    refused = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
    if isinstance(refused, ssl.SSLCertVerificationError):
        trusted = (
            f"SSL_CERT_FILE is {certificates!r}; it has to hold" if certificates else "set SSL_CERT_FILE to"
        )
        return f"the hub's certificate is not trusted ({refused.verify_message}); {trusted} its authority's"
    if refused is not None and certificates:
        return f"SSL_CERT_FILE is {certificates!r}, which is no file of certificates: {refused}"
    if "UnsupportedProtocol" in kinds and environ.get("HF_ENDPOINT"):
        return f"HF_ENDPOINT is {environ['HF_ENDPOINT']!r}; use an address that begins with https://"
    proxy = next((name for name in PROXIES if environ.get(name)), None)
    if proxy is None:
        return None
    if any(isinstance(cause, ImportError) and "SOCKS" in str(cause) for cause in causes):
        return f"{proxy} names a SOCKS proxy, which is not supported; use one that speaks HTTP"
    if kinds & {"ConnectError", "ConnectTimeout", "ProxyError"}:
        return f"no connection through the proxy that {proxy} names: {causes[-1]}"
    return None
