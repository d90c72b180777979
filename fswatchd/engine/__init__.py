"""From events to incidents to decisions to plans carried out.

`intake` turns events into incidents, `book` keeps the open ones, `decider` asks the policy,
`executor` carries plans out, `closer` ends incidents when facts prove that they are over.
"""
