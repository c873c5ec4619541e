"""What training and serving share; copied whole into every model archive.

Imports torch, numpy, Pillow and the standard library, and nothing else of mlp_dist.
"""
