"""Describes this machine: its processor, its GPU, whether it is a Jetson, and what its programs and files say.

Nothing in this package changes the machine. A fact that is unknown is None (or empty), and never guessed. `description`
collects the facts that are reported beside every measured figure.
"""
