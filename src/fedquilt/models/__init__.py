"""Base models and loss functions: the only package that knows what a transformer looks like."""
