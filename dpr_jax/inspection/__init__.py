"""What prepared data sets hold, and what in them would deceive."""
