"""The stage that measures runs, whoever wrote them, and draws the report."""
