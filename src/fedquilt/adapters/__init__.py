"""Adapter families: what trains. Each family builds an :class:`~fedquilt.adapters.base.Adapter` from a base model."""
