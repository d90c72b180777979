"""`fswatch drill`: a real fault on a scratch VE, handled by the running daemon, and measured.

Drill and daemon share the public API and the kernel, nothing else. `scene` builds what is scratch,
`ve` and `inside` are the scratch VE, `faults` does the damage, `measure` says what came of it,
`janitor` takes everything away again, also when the drill itself dies.
"""
