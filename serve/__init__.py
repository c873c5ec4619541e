"""The handler, the archive built around it, and a client and a server to use it with."""
