"""The damage zoo: real damages, each of another kind, made on images that nothing has mounted.

`damage` says what one is, `ext4`, `xfs` and `btrfs` make them, `ladder` runs one through the same
code that repairs a VE's volume, and through the tool alone. `tests/system/test_zoo.py` compares.
"""
