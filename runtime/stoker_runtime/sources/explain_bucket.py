"""From what a server that speaks S3 answered to an error a person can act on. Pure.

The library gives most failures one type and the answer as text, so that is read: HTTP status and code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from stoker_runtime.errors import ConfigError, ModelError, StokerError
from stoker_runtime.sources.bucket import BucketSource, endpoint_of
from stoker_runtime.sources.disk import causes, disk_fault
from stoker_runtime.sources.environment import PROXIES

_WHERE_KEYS_GO = (
    "the Secret named by spec.model.secretName (keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a role "
    "for spec.pod.serviceAccountName, or AWS_SKIP_SIGNATURE=true in spec.pod.env for a public bucket"
)
_RIGHTS = "s3:ListBucket on the bucket and s3:GetObject on what is in it"
_WRONG_REGION = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)
# Whom the library asks for keys that it was not given: a node's metadata, which elsewhere than at AWS nobody
# answers for; an agent on the node, or the service that changes a token for keys, to which all POSTs go.
_NO_METADATA = re.compile(r"/latest/(api/token|meta-data)")
_NO_ROLE = re.compile(r"169\.254\.170\.|Error performing POST|token file")
# What differs each time a call fails, and would make the same failure news.
_TIMES = re.compile(
    r" in [\d.]+(ns|µs|ms|s)\b(, after \d+ retries)?(, max_retries: \d+, retry_timeout: \S+)?"
)
_CERTIFICATE = re.compile(r"invalid peer certificate: [^\n\"]*|UnknownIssuer|certificate verify failed")


def explain(error: BaseException, source: BucketSource, environ: Mapping[str, str]) -> StokerError:
    """Return the reason and the advice for a failed listing or download.

    Args:
        error: what the library or the disk raised.
        source: what was asked for.
        environ: of this process.
    """
    chain = list(causes(error))
    disk = disk_fault(chain, str(source))
    if disk is not None:
        return disk
    text = "\n".join(str(cause) for cause in chain)
    code, status = _code(text), _status(text)
    where = f"{source} at {endpoint_of(environ) or 'AWS'}"
    if code in _WRONG_REGION or "without LOCATION" in text:
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1, the default"
        return ConfigError(
            f"{where}: the bucket is in another region than {region}: set AWS_REGION in spec.pod.env"
            f"{_said(text)}"
        )
    if code == "NoSuchBucket" or status == 404:
        # Objects that are gone never come here: the list is asked for again.
        what = f"there is no bucket {source.bucket}"
        hint = "" if code else f", or this is no server that speaks S3 ({_failure(text)})"
        return ModelError(f"{where}: {what}{hint}", reason="ModelNotFound")
    if _NO_METADATA.search(text) or _NO_ROLE.search(text):
        return ModelError(
            f"{where}: there are no credentials to be had here ({_failure(text)}){_said(text)}; give them in "
            f"{_WHERE_KEYS_GO}",
            reason="ModelAccessDenied",
        )
    if status in (401, 403):
        return ModelError(
            f"{where}: access was refused ({code or status}){_said(text)}; it takes {_RIGHTS}: correct "
            f"{_WHERE_KEYS_GO}",
            reason="ModelAccessDenied",
        )
    return ModelError(f"{where}: download failed: {_cause(text, environ)}", reason="DownloadFailed")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed a moment later."""
    chain = list(causes(error))
    text = "\n".join(str(cause) for cause in chain)
    status = _status(text)
    if disk_fault(chain, "") is not None:
        return False
    if _NO_METADATA.search(text) or _CERTIFICATE.search(text) or "without LOCATION" in text:
        return False
    return status is None or status >= 500 or status in (408, 429)


def _cause(text: str, environ: Mapping[str, str]) -> str:
    certificates = environ.get("SSL_CERT_FILE")
    found = _CERTIFICATE.search(text)
    if found is not None:
        trusted = (
            f"SSL_CERT_FILE is {certificates!r}; it has to hold" if certificates else "set SSL_CERT_FILE to"
        )
        return f"the server's certificate is not trusted ({found[0]}); {trusted} its authority's"
    proxy = next((name for name in PROXIES if environ.get(name)), None)
    by = f", through the proxy that {proxy} names" if proxy and _status(text) is None else ""
    return f"{_failure(text)}{by}"


def _failure(text: str) -> str:
    """Return a failure in a line that is the same each time: the library's first, and the cause it names."""
    first = text.strip().partition("\n")[0].removeprefix("Generic S3 error: ")
    inner = [found for found in re.findall(r'(?:message|error): "([^"]+)"', text) if found not in first]
    return ": ".join([_TIMES.sub("", first).strip(), *inner[-1:]])


def _status(text: str) -> int | None:
    found = re.search(r"status code: (\d{3})", text)
    return int(found[1]) if found else None


def _code(text: str) -> str:
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""


def _said(text: str) -> str:
    found = re.search(r"<Message>([^<]{1,300})", text)
    return f" ({found[1].strip()})" if found else ""
