"""Thin adapters over library detectors."""
