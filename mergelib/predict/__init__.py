"""Forecasts of mergeability: predictor, target, split, baseline, null."""
