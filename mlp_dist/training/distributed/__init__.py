"""How the processes of a training connect and communicate."""
