"""Boxes without labels: selective search, filters, and the file that keeps them."""
