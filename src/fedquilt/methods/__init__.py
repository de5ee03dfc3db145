"""One file per paper. A builder's signature is its configuration schema."""
