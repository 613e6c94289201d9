"""One loop, its schedule, its checkpoints and its run directory."""
