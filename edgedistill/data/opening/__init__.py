"""Finds sessions on disk and opens them, and says what is wrong with a file that cannot be opened whole."""
