"""Flower as the transport: its SuperLink and SuperNodes carry the bytes, authenticate nodes and encrypt; the rest is fedquilt's.

``server`` and ``client`` hold the two apps; ``grid`` is the transport of the server's engine; ``codec`` puts bytes into messages.
Needs the extra ``flower``.
"""
