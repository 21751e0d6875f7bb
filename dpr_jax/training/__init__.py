"""Training the dual encoder: loss, the per-device step, checkpoints, validation, the loop."""
