"""The server: HTTP, MCP and a page over the retrievers of a work directory."""
