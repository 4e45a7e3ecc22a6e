"""Classify microscope images of single blood cells into eight types, with small networks trained from scratch."""

import os

__version__ = "0.1.0"

# GNU's OpenMP reads it as torch is imported. A thread that waits for another spins a thirtieth as long as by default:
# beside other work, which then has the core, training is twice as fast; alone, nothing changes.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
