"""Measured times and ratios, as tables and json; `python -m scripts.benchmark` lists them."""
