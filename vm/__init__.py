"""The machine lane: whole machines in QEMU, on which the package is installed and proven."""
