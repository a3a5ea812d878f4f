"""Region-level evaluation: `python -m eval TASK` asks a model about every region of a data folder and scores it."""
