"""The published work's predictors. Importing this package registers them in `PREDICTORS`."""

from mergelib.published.predictors import rows as rows
