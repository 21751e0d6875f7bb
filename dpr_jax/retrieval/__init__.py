"""The stage that answers questions in batches, and the run files it writes."""
