"""One scenario a module: `NAME`, `KERNELS`, and `run`, which returns what was seen.

A machine has the package installed already, except where `BARE` is true.
"""
