"""Thin wrappers of single kernel interfaces: structures, numbers, errno. No policy, no state.

Nothing in here imports anything else of fswatchd but `devno`. Constants keep the name they have in
the kernel's headers; each module names the header or manual page it follows.
"""
