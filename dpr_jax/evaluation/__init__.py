"""The stage that scores runs of any tool and draws the report."""
