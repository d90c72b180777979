"""The program `fswatch`: asks the daemon over its socket and shows the answer.

Only the standard library and `rich` (for terminals): the daemon's own libraries are not loaded.
"""
