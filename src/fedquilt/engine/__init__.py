"""Where clients run. Engines know a :class:`~fedquilt.method.Program`'s client half, never a method."""
