"""The steps of a plan, a module for each `do` of a rule (`steps` says what they have in common)."""
