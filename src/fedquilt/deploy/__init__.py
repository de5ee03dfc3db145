"""A run whose clients are elsewhere: what is said to them and by them, and both ends of it.

:mod:`parcel` is what travels, :mod:`host` a client's side, :mod:`remote` the server's engine over any :class:`remote.Transport`.
"""
