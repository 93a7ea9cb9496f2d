"""Intervals, folds and small convex problems: arrays in, numbers out."""
