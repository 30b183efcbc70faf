"""Chapter 7's study: rules of fine-tuning compared by what their models' merges can do.

variants.py   the parameter file: every training that the study asks for
scores.py     a variant's merges, on the calibration or the test split
stages.py     search, coefficients, judgement, one after the other; the tables
frozen.py     the tables on disk: a later run goes on from them
__main__.py   the command
"""
