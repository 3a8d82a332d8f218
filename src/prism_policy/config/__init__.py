"""Every setting: frozen dataclasses without torch, presets, JSON."""
