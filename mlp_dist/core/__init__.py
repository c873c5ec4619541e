"""Code shared by training and serving, copied into every model archive.

Imports only torch, numpy, Pillow, OpenCV, the standard library, and core itself.
"""
