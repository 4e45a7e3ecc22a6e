"""Classify microscope images of single blood cells into eight types, with small networks trained from scratch."""

__version__ = "0.1.0"
