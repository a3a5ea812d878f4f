"""Synthetic scenes of textured, coloured shapes with exact masks, written as published annotation files.

The scenes stand in for photographs where none may be downloaded: tests, the quickstart, demonstrations. What is written
are ordinary COCO files, so that scenes take the same way through the readers as real data.
"""
