"""Takes what a live stream decoded: files, other programs, a page. Each sink runs in a thread of its own."""
