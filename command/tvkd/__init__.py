"""The command `tvkd` and its demo."""
