"""Staged training: stages as declared data, run settings, the collator and the Trainer that follows them."""
