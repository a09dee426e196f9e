"""Words and phrases that mark reasoning against solutions: counts, log-odds, and the files."""
