"""Importing this module registers the model with transformers' Auto classes: each part does so where it is defined."""

import osprey_tp.configuration
import osprey_tp.modeling
import osprey_tp.processing  # noqa: F401 - imported for what it registers
