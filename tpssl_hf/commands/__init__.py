"""The commands of ``tpssl-hf``, and the public functions of the same keys."""
