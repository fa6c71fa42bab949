"""Triton's interpreter without what it does again at each call, which is a third of its time.

For each kernel that starts, and again for each function that a kernel calls, it looks through the whole
language for what to replace. Inside of a kernel all has been replaced already, and what there is to replace
stays the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


@cache
def _builtins(package: Any) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


@cache
def _languages(function: Callable[..., object]) -> list[Any]:
    """The modules through which a function sees the language: kernels one, the language's own another."""
    return [module for module in (tl, tl.core) if any(one is module for one in function.__globals__.values())]


@cache
def hurry() -> None:
    """Let the interpreter look once."""
    replace_all, of_scalar = interpreter._patch_lang, cache(interpreter._get_np_dtype)

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        for name, member in _builtins(package):
            interpreter._patch_attr(package, name, member, builder, scope)

    def patch_lang(function: Callable[..., object]) -> Any:
        if any(tl.core.is_builtin(language.load) for language in _languages(function)):
            return replace_all(function)
        return interpreter._LangPatchScope()

    def dtype_of(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return np.dtype(np.uint64) if isinstance(element, tl.pointer_type) else of_scalar(element)

    interpreter._patch_builtin = patch_builtin
    interpreter._patch_lang = patch_lang
    interpreter._get_np_dtype = dtype_of
