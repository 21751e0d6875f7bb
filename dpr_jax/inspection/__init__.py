"""The stage that describes prepared data, and what in them would deceive."""
