"""One scenario a module: `NAME`, `KERNELS`, and `run`, which returns what was seen."""
