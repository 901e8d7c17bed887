"""What the server and the trainer must agree on: definitions, keys, wire format, store format, errors."""
