"""Measures what a decoder costs and how well it decodes, on the machine it runs on."""
