"""Does a feature mean reasoning, or do a few of its tokens decide? Definitions: experiment.py and verdict.py."""
