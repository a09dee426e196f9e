"""Reasoning text for the quickstart: natural exemplars, and generated problems whose solutions check themselves."""
