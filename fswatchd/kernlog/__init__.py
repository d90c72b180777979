"""The grammar of the kernel's own lines about filesystems and storage.

`prefix` strips what logs put before a message, `grammar` classifies the message. The patterns are
data beside their sample lines in `patterns/*.toml`.
"""
