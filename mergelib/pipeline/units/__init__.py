"""The units of work, one module a station: each makes one artifact, unless it is stored already.

`make(store, run, *names)` is a pure function of the store, the run's parameters and names. What a
module imports is the code behind its station's key (`mergelib.pipeline.sources`), so it imports
what it computes with and no more.
"""
