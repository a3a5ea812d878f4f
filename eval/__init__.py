"""Region-level evaluation."""
