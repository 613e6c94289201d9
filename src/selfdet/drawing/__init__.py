"""Pictures, curves and the report page."""
