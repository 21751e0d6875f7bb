"""The stage that describes prepared data and warns of what would inflate their figures."""
