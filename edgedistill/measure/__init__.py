"""What a decoder costs on this machine, measured on this machine."""
