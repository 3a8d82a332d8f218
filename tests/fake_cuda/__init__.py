"""A device "cuda" of tensors without data, for machines without a GPU."""
