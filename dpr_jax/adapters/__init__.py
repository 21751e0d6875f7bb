"""Retrievers for other frameworks, over a work directory or a server of `dpr serve`."""
