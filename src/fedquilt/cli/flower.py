"""Whether Flower is there."""

from __future__ import annotations

from importlib.util import find_spec


def need_flower() -> None:
    """Raise if the extra is not installed."""
    from fedquilt.errors import ConfigError

    if find_spec("flwr") is None:
        raise ConfigError("this needs Flower", where="the extra 'flower'", fix="pip install 'fedquilt[flower]'")
