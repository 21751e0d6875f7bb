"""Readers of raw files: one module per family of layouts; `detect` picks one."""
