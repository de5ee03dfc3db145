"""The exception tree. Every error says what happened, where, why, and how to fix it.

FedquiltError                 exit code 1
├── ConfigError               2   a value in a config file or on the command line
├── DataError                 3   a data set, column, label, partition
├── ModelError                2   a model that cannot be loaded or lacks the wanted modules
├── QuorumError               4   too few usable replies in a round
├── StateError                5   a run directory: corrupt, in use, from another config, disk full
└── CompositionError          2   parts that cannot be combined in one method
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedquiltError(Exception):
    """Base of all errors meant for the user; anything else that escapes is a bug.

    Args:
        what: one sentence with the offending values.
        where: file, config path, client, row: what the user has to open.
        why: the reason, if the sentence does not already say it.
        fix: what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        parts = [what]
        parts += [f"  {name}: {text}" for name, text in (("where", where), ("why", why), ("fix", fix)) if text]
        super().__init__("\n".join(parts))


class ConfigError(FedquiltError):
    """A value in a config file, an override, or a builder argument is wrong."""

    exit_code = 2


class CompositionError(ConfigError):
    """Parts that cannot work together, found before any training."""


class ModelError(FedquiltError):
    """The base model or its tokenizer cannot be used as asked."""

    exit_code = 2


class DataError(FedquiltError):
    """A data set, column, label or partition is wrong."""

    exit_code = 3


class QuorumError(FedquiltError):
    """Too few usable replies came back."""

    exit_code = 4


class StateError(FedquiltError):
    """A run directory is corrupt, in use, from another configuration, or cannot be written."""

    exit_code = 5


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A closing sentence for an unknown ``word``: the nearest allowed one, or the list.

    >>> did_you_mean("sentance", ["sentence", "label"])
    "did you mean 'sentence'? (allowed: label, sentence)"
    >>> did_you_mean("zzz", ["a"])
    'allowed: a'
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    listing = ", ".join(names) if names else "nothing"
    return f"did you mean '{near[0]}'? (allowed: {listing})" if near else f"allowed: {listing}"
