"""The page on which one draws a digit and sees the server's answer: launch/draw.py."""
