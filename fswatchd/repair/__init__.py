"""The parts a repair is made of: scope, freeze, clone, check, stop, swap, start, verify.

`clone_repair` puts them together for `strategy = "clone"`, `offline` for the classic way,
`rollback` for the way back. Each part refuses rather than guesses.
"""
