"""Triton's interpreter, without replacing all of triton.language anew at each call of a function.

Before every launch it replaces the builtins of triton.language by its own, and before every call of a device function
within it tries to once more, which takes longer than what a small function computes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

is_builtin = tl.core.is_builtin


def make_quick() -> None:
    """Of a release of Triton that replaces in another way, all stays as it is."""
    if not hasattr(interpreter, "_LangPatchScope") or "scope" not in inspect.getsource(interpreter._patch_lang):
        return
    patch, np_dtype = interpreter._patch_lang, interpreter._get_np_dtype

    @functools.cache
    def languages(fn: Callable[..., Any]) -> list[Any]:
        return [value for value in fn.__globals__.values() if value is tl or value is tl.core]

    def patch_lang(fn: Callable[..., Any]) -> Any:
        if any(is_builtin(lang.load) or is_builtin(lang.tensor.__add__) for lang in languages(fn)):
            return patch(fn)
        return interpreter._LangPatchScope()  # the caller has replaced them, and puts them back

    dtypes: dict[str, Any] = {}

    def get_np_dtype(tt_dtype: Any) -> Any:
        element = tt_dtype.element_ty if isinstance(tt_dtype, tl.block_type) else tt_dtype
        if element.name not in dtypes:
            dtypes[element.name] = np_dtype(element)
        return dtypes[element.name]

    interpreter._patch_lang, interpreter._get_np_dtype = patch_lang, get_np_dtype
