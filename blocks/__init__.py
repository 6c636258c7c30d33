"""Prefect blocks: references to clusters, repositories, keys and channels, and the engine settings they stand for.

Loading a block is the only thing here that needs a Prefect server. New fields always have defaults: a required
one would make documents that were saved before unreadable.
"""
