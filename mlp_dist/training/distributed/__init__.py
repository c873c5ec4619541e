"""How the processes of a training find and hear each other."""
