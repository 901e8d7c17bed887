"""Teachers: one interface, several engines."""
