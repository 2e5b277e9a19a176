"""Predictors guess which neurons fire before any row of the gate is read.

The rule's threshold still applies to what a predictor lets through, so it can lose neurons and
never adds noise.
"""
