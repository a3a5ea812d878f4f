"""Instruction data written by a language model from prepared records, and yes/no questions made by rule."""
