"""The report of baseline and steered evaluations: runs, pairs, statistics, tables, figures and pages."""
