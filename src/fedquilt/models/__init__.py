"""Base models and loss functions: the only package that knows what a transformer looks like."""

import logging

# peft imports bitsandbytes wherever it is installed, which then reports kernels that it did not find, and in every product of a
# quantised map that 8 bits are computed in float16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
