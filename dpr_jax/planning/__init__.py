"""Plans a config on a machine that is not here: programs compiled for it, and read."""
