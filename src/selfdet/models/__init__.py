"""Backbones, feature pyramids and projection heads."""
