"""The spatial probe of encoders, and what encoders cost."""
