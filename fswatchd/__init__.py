"""fswatchd: filesystem event notification and online repair for nodes that carry containers.

Read `docs/architecture.md` first: it says which module does what, and in which direction
data flows.
"""

__version__ = "0.1.0"
