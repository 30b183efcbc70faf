"""The reference bank of the forecast and its evaluation.

pools.py      images of a task that neither training nor test has seen
probes.py     what merged models, experts and base make of them: one unit a pair and method
table.py      the bank: statistics of draws of 5 to 100 images, both sides
protocol.py   leave-two-tasks-out over the draws: error, coverage, regret, beside the baselines
__main__.py   the command
"""
