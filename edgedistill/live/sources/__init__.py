"""Gives live frames: from Lab Streaming Layer, a socket, a pipe, or a recording that is replayed."""
