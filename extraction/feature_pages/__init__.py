"""Feature interfaces: what the shown features do on a text, as pages that need no network."""
