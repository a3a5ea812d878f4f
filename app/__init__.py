"""The click-to-segment app."""
