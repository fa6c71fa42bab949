"""Prompts of a known length: words that are one token each, after a space, in the common BPE vocabularies.

The server's own count comes back in `usage`, so a vocabulary that splits a word shows up in the results.
"""

from __future__ import annotations

import random

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city community name "
    "president team minute idea body information back parent face others level office door health person art "
    "war history party result change morning reason research girl guy moment air teacher force education"
)
WORDS = tuple(_TEXT.split())


def prompt(num_tokens: int, seed: int, index: int) -> str:
    """Return the prompt of the index-th request: `num_tokens` words, the same for the same seed and index."""
    if num_tokens < 1:
        raise ValueError(f"a prompt needs at least one token, not {num_tokens}")
    rng = random.Random(f"{seed}/{index}")
    return " " + " ".join(rng.choices(WORDS, k=num_tokens))
