"""`tvkd eval`: what one trained student does on held-out pairs and prompts, beside its reference."""
