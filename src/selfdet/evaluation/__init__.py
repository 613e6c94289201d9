"""Average precision and other scores."""
