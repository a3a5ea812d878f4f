"""All fuzz targets by name: what reads bytes from outside, and the files that fuzzing starts from."""

from . import files, regions

TARGETS = regions.TARGETS | files.TARGETS
