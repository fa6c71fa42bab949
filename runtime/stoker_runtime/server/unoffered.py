"""What of a client's body this server does not look at, and what it refuses because it could not obey. Pure.

Clients send more than one server knows: fields of other engines, a form's every slider, a class with all that
it has. A field that nobody here knows is ignored and named. A field that is known and not offered is refused
only with a value that would have changed the answer, because the client would get another one than it asked
for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from pydantic_core import from_json

from stoker_runtime.server.fields import unsupported

# Fields of vLLM, SGLang, llama.cpp, Ollama, TGI and text-generation-webui that would pick other tokens, with
# what asks for nothing there; null, "", [] and {} always do. What only goes with one of them, such as
# mirostat_tau, is ignored as an unknown field is.
NOT_OFFERED: Mapping[str, tuple[object, ...]] = {
    # how tokens are picked
    "typical_p": (0, 1),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (-1, 0),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0,),
    "dynamic_temperature": (False,),
    "smoothing_factor": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "no_repeat_ngram_size": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "negative_prompt": (),
    "ban_eos_token": (False,),
    "use_beam_search": (False,),
    "num_beams": (1,),
    "logits_processors": (),
    # the form that an answer must have
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structural_tag": (),
    "grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    # what comes back
    "detokenize": (True,),
}
CHAT_NOT_OFFERED: Mapping[str, tuple[object, ...]] = {
    **NOT_OFFERED,
    "modalities": (["text"],),
    "web_search_options": (),
    "chat_template": (),
}
_INSTEAD = {
    "chat_template": "; serve the model with --chat-template",
    "use_beam_search": "; `best_of` chooses among several answers",
}
# Ignored like what nobody knows, and not worth naming with these values.
_QUIET: Mapping[str, tuple[object, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True, False),
    "prompt_cache_retention": ("in-memory", "in_memory"),
    "spaces_between_special_tokens": (True, False),  # its slow tokenizers are not used here
    "stream_options.include_obfuscation": (False,),
    "tools": (),
    "functions": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
}


def asks_nothing(value: object, neutral: Iterable[object]) -> bool:
    """Tell whether a value changes no answer: null, what is empty, or one of those named, be it as a text."""
    allowed = tuple(neutral)
    if isinstance(value, str) and any(isinstance(item, int) for item in allowed):
        with suppress(ValueError):
            value = from_json(value)
    return value in (None, "", [], {}, *allowed)


def check_offered(body: Mapping[str, Any], not_offered: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a field whose value would have changed the answer.

    Raises:
        PydanticCustomError: names it and says what may be sent.
    """
    for name in body.keys() & not_offered.keys():
        neutral = not_offered[name]
        if not asks_nothing(body[name], neutral):
            raise unsupported(name, neutral, _INSTEAD.get(name, ""))


def check_tools(body: Mapping[str, Any], tools: str, choice: str) -> None:
    """Refuse tools that the model may call, in either of OpenAI's spellings; with "none" they are left aside.

    Args:
        body: of a chat.
        tools: the field with the tools: "tools" or "functions".
        choice: the field that says which: "tool_choice" or "function_call".

    Raises:
        PydanticCustomError: names the field.
    """
    wanted = body.get(choice)
    if wanted == "none":
        return
    for name, asked in ((tools, bool(body.get(tools))), (choice, not asks_nothing(wanted, ("auto",)))):
        if asked:
            raise unsupported(name, (), f", or send `{choice}` as 'none': it makes no tool calls")


def ignored_names(body: Mapping[str, Any], known: Collection[str], prefix: str = "") -> list[str]:
    """Return the paths of what nobody looks at, in the body's order.

    Args:
        body: a JSON object of the body; null values are as good as left out.
        known: names that are looked at.
        prefix: of its own path, such as "stream_options.".
    """
    return [
        f"{prefix}{name}"
        for name, value in body.items()
        if name not in known and value is not None and not _is_quiet(f"{prefix}{name}", value)
    ]


def _is_quiet(path: str, value: object) -> bool:
    neutral = _QUIET.get(path, CHAT_NOT_OFFERED.get(path))
    return neutral is not None and asks_nothing(value, neutral)
