"""From other people's files to data sets on disk, and what every later stage opens; has_answer."""
