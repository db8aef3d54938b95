"""The server of secureblogs: the HTTP API, its domain, and the engines it can bring along."""
