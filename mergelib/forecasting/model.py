"""The forecast that comes with the package: fitted on the reference bank, read from one file."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from mergelib.forecasting.document import read_forecaster
from mergelib.forecasting.evidence import Evidence, Forecast
from mergelib.forecasting.forecaster import Forecaster

SHIPPED = Path(__file__).with_name("calibration.json")


@lru_cache(maxsize=1)
def shipped() -> Forecaster:
    """The forecaster that comes with the package."""
    return read_forecaster(SHIPPED)


def forecast(evidence: Evidence, methods: Sequence[str]) -> dict[str, Forecast]:
    """The forecast of a pair's merge by each method.

    A method that the bank does not hold is forecast by what the others share. Raises MergelibError
    as `forecaster.level_of` does.
    """
    return shipped().predict(evidence, methods)


def recommend(forecasts: Mapping[str, Forecast]) -> tuple[str, float]:
    """The method of the highest forecast and its expected regret, see `Forecaster.recommend`."""
    return shipped().recommend(forecasts)
