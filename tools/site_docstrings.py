"""Docstrings as the site needs them: options where they belong, and names as code."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from textwrap import dedent, indent
from typing import Any

from griffe import Docstring, Extension, Function, Object, Parameter, ParameterKind

__all__ = ["Docstrings"]

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")
_NESTED = re.compile(r"^    \*\*keywords:.*\n((?:        .*\n)+)", re.M)


class Docstrings(Extension):
    """Lets Griffe, which reads sources, see what ``onnx_lowrank.options.documented`` made."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Show names in docstrings as code, not as roles of Sphinx."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Put options in the place of ``**keywords`` and of the line ``{options}``."""
        if not any(str(d.value).startswith("documented(") for d in func.decorators):
            return
        loaded = getattr(import_module(func.module.path), func.name)
        text = _NESTED.sub(_as_arguments, inspect.getdoc(loaded) or "")
        func.docstring = Docstring(_ROLE.sub(r"`\1`", text), parent=func)
        declared = func.parameters
        for name, parameter in inspect.signature(loaded).parameters.items():
            if name not in declared:
                kind, default = ParameterKind.keyword_only, repr(parameter.default)
                declared.add(Parameter(name, kind=kind, default=default))
        for catch_all in [p for p in declared if p.kind is ParameterKind.var_keyword]:
            del declared[catch_all.name]


def _as_arguments(nested: re.Match[str]) -> str:
    """Options as arguments of their own, in the place of the one that stands for all of them."""
    return indent(dedent(nested[1]), " " * 4)
