"""Evaluations of many interventions: what is run, and its folders."""
