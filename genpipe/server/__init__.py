"""The HTTP server: an engine that draws strangers' requests together, its APIs and its page. Needs `genpipe[serve]`."""
