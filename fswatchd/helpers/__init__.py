"""Small processes of our own for what must not happen inside the daemon.

`mounts` enters other mount namespaces, `guard` holds a freeze and undoes it when the daemon dies.
Both speak JSON datagrams with descriptors attached, over a socket they inherit (`wire`).
"""
