"""The handler's code. It is copied into every model archive."""
