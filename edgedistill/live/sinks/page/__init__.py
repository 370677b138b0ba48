"""Shows a live stream on a page in the browser: a sink that serves it, from the standard library alone."""

from edgedistill.live.sinks.page.sink import PageSink

__all__ = ["PageSink"]
