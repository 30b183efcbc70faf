"""For tests and chapters alike: `pytest --nbval book/02_metrics.ipynb` compares numbers, too."""

pytest_plugins = ["notebook_numbers"]
