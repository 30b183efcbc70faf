"""Decompositions, all in one place: LAPACK calls, singular values and vectors, polar factors."""
