"""What this machine is: its processor, its GPU, the Jetson it may be, and what its programs and files say.

Nothing of this package changes the machine. A fact that cannot be found out is None (or empty), never a guess.
`description` gathers what must stand beside every measured figure.
"""
