"""Whose filesystem is it: VEs, mount namespaces, mounts, superblocks and what they rest on.

`model` holds the values, `scan` reads the kernel, `inventory` keeps the picture current and
answers questions, `watch` tells it when to look again.
"""
