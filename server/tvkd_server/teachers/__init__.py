"""Teachers: one base class, two engines."""
