"""Make the library's docstrings fit for Markdown: fence doctests, show ``:class:`~a.b.C``` as ``C``."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?(?:[\w.]+\.)?(\w+)`")
_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


def markdown(text: str) -> str:
    """The docstring as Markdown."""
    return _DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", _ROLE.sub(r"`\1`", text))


class Docstrings(griffe.Extension):
    """Rewrites every docstring that has one of the two."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
