"""From what a failed download raised to a `ModelError` a person can act on. Pure.

The hub answers 401 both for a repository that does not exist and for one the caller may not see, and the
library wraps connection errors in file-not-found errors; so the whole chain of causes is looked at.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stoker_runtime.errors import ModelError
from stoker_runtime.sources.disk import causes, disk_fault, first_line
from stoker_runtime.sources.environment import environment_fault

_WHERE_TOKENS_GO = "the Secret named by spec.model.secretName (key `token`), or HF_TOKEN outside Kubernetes"


def explain(error: BaseException, model: str, environ: Mapping[str, str]) -> ModelError:
    """Return the reason and the advice for a failed look-up or download.

    Args:
        error: what the hub library raised.
        model: the source as the user knows it.
        environ: of this process.
    """
    chain = list(causes(error))
    statuses = [cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)]
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return ModelError(
            f"{model} is gated: accept its terms on the hub, then put that account's token "
            f"into {_WHERE_TOKENS_GO}",
            reason="ModelAccessDenied",
        )
    if 401 in statuses or 403 in statuses:
        return ModelError(
            f"{model}: the hub refused access ({401 if 401 in statuses else 403}); either there is no such "
            f"repository, or it is private: put a token that can read it into {_WHERE_TOKENS_GO}",
            reason="ModelAccessDenied",
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in chain):
        return ModelError(f"{model}: no such branch, tag or commit in the repository", reason="ModelNotFound")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return ModelError(f"{model}: the hub has no such repository", reason="ModelNotFound")
    disk = disk_fault(chain, model)
    if disk is not None:
        return disk
    cause = environment_fault(chain, environ) or first_line(chain[-1])
    return ModelError(f"{model}: download failed: {cause}", reason="DownloadFailed")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same call may succeed a moment later."""
    chain = list(causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled | ssl.SSLCertVerificationError) for cause in chain):
        return False
    statuses = [cause.response.status_code for cause in chain if isinstance(cause, HfHubHTTPError)]
    if any(400 <= status < 500 and status not in (408, 429) for status in statuses):
        return False
    return disk_fault(chain, "") is None
