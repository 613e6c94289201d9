"""selfdet."""
