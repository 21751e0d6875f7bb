"""Reads raw files into data sets on disk, which every later stage opens; has_answer."""
