"""The server: the teacher behind HTTP, its values in a store."""
