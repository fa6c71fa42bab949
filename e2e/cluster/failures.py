"""What to do after a failure, by its kind: every message that ends a command ends with it.

An error may know its next step itself (`ClusterError.next_step`); else its text is looked through for what
programs say about the common causes. Only the standard library is imported.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from cluster.api import ClusterError


@dataclass(frozen=True)
class Kind:
    """A common cause.

    Attributes:
        pattern: what programs print then.
        step: what to do; {again} stands for the command that failed, {goes_on} for what it does when it is
            run again.
    """

    name: str
    pattern: str
    step: str


GOES_ON = "goes on where it stopped"

# The first that fits counts.
KINDS = (
    Kind(
        "disk",
        r"No space left on device|Disk quota exceeded|not enough free space",
        "free disk space (`df -h`; `make preflight` says how much is needed), then `{again}`: it {goes_on}.",
    ),
    Kind(
        "memory",
        r"signal: killed|[Oo]ut of memory|[Cc]annot allocate memory|failed with -9\b|status 137|\bKilled\b",
        "something was killed, most likely for want of memory (`make preflight` says how much is needed): end"
        " other programs, then `GOFLAGS=-p=1 {again}`, which compiles one package at a time.",
    ),
    Kind("dpkg", r"dpkg was interrupted", "as root `dpkg --configure -a`, then `{again}`."),
    Kind(
        "docker-permission",
        r"permission denied while trying to connect to the [Dd]ocker",
        "be a user that may use Docker (`sudo usermod -aG docker $USER`, then log in again), then `{again}`.",
    ),
    Kind(
        "docker-down",
        r"[Cc]annot connect to the Docker daemon|Is the docker daemon running",
        "start Docker (`sudo systemctl start docker`), then `{again}`.",
    ),
    Kind(
        "port",
        r"[Aa]ddress already in use|port is already allocated",
        "end what uses the port (`ss -ltnp` as root names it), then `{again}`.",
    ),
    Kind(
        "certificates",
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|x509: |UnknownIssuer|unknown authority",
        "let this machine trust your network's certificate authority (on Debian: a file in"
        " /usr/local/share/ca-certificates, then `update-ca-certificates`; for pip also `PIP_CERT`, for uv"
        " `SSL_CERT_FILE`), then `{again}`.",
    ),
    Kind(
        "network",
        r"[Tt]emporary failure (?:in name resolution|resolving)|[Cc]ould not resolve|no such host|dns error"
        r"|Name or service not known|[Cc]onnection (?:refused|timed out|reset)|Network is unreachable"
        r"|dial tcp|Failed to fetch|error sending request|Failed getting release file|i/o timeout"
        r"|ENOTFOUND|EAI_AGAIN|\(from versions: none\)",  # the last is all that pip says of a silent index
        "see whether this machine reaches its package mirrors (`http_proxy`, `https_proxy`, `PIP_INDEX_URL`,"
        " `GOPROXY`), then `{again}`: it {goes_on}.",
    ),
    Kind(
        "hash",
        r"[Hh]ash(?:es)? (?:sum )?mismatch|DO NOT MATCH THE HASHES|checksum mismatch|SECURITY ERROR",
        "what was downloaded is not what is pinned here: `.venv/bin/uv cache clean` and `go clean -modcache`,"
        " then `{again}`; if it stays, the mirror changes files.",
    ),
    Kind(
        "go",
        r"Go \d+\.\d+ or newer|go: .*requires go >=|toolchain not available",
        "put a newer Go on PATH (https://go.dev/dl), or install Docker and kind instead; `make preflight`"
        " says what counts, then `{again}`.",
    ),
    Kind(
        "kernel",
        r"Unknown device type|Operation not supported|Protocol not supported|No such device|modprobe"
        r"|Could not process rule|Function not implemented",
        "this machine's kernel lacks something that Kubernetes needs: use a distribution's own kernel (a"
        " virtual machine will do), or Docker and kind; then `{again}`.",
    ),
    Kind(
        "permission",
        r"[Pp]ermission denied|Operation not permitted|Read-only file system",
        "be the user that owns this folder and the cache (`ls -ld . ~/.cache/stoker`), or take them over with"
        " `sudo chown -R $USER . ~/.cache/stoker`; then `{again}`.",
    ),
    Kind(
        "program",
        r"No such file or directory: '(?!/)|command not found|is not on PATH|missing programs",
        "install the program that is named (`make preflight` says what else is missing), then `{again}`.",
    ),
    Kind(
        "timeout",
        r"did not (?:end|happen) within|timed out after",
        "perhaps the machine is busy (`uptime`): `{again}` {goes_on}. If it fails again,"
        " `make demo-down` and `{again}` begin with a new cluster.",
    ),
)
OTHERWISE = "`{again}` {goes_on}. If it fails again in the same way, report it with the lines above."


def kind_of(text: str) -> str | None:
    """The name of the first kind of failure that a text speaks of."""
    return next((kind.name for kind in KINDS if re.search(kind.pattern, text)), None)


def advice(text: str, again: str, goes_on: str = GOES_ON) -> str:
    """What to do after a failure that printed this.

    Args:
        again: the command that a person would type again.
        goes_on: what that command does then, with the verb first.
    """
    found = next((kind.step for kind in KINDS if kind.name == kind_of(text)), OTHERWISE)
    return found.replace("{goes_on}", goes_on).replace("{again}", again)


def text_of(error: BaseException) -> str:
    """What an error says, in a sentence that names the cause."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"`{_line(error.cmd)}` did not end within {error.timeout:.0f} s."
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr or error.stdout or ""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        return f"`{_line(error.cmd)}` failed with {error.returncode}. {said[-2000:]}".rstrip()
    return str(error) or type(error).__name__


def _line(command: object) -> str:
    return " ".join(map(str, command)) if isinstance(command, list | tuple) else str(command)


def next_step(error: BaseException, again: str, goes_on: str = GOES_ON) -> str:
    """What to do after an error: what it knows itself, else by its kind. For arguments see `advice`."""
    if isinstance(error, ClusterError) and error.next_step:
        return error.next_step.replace("{again}", again)
    return advice(text_of(error), again, goes_on)


def render(error: BaseException, again: str) -> str:
    """The whole message: what failed, and as its last line what to do."""
    return f"{text_of(error)}\n{line(next_step(error, again))}"


def line(step: str) -> str:
    """The last line of a failed command."""
    return f"Next: {step}"
