"""A forecast in words."""

from mergelib.forecasting.intervals import Errors, reaches

THRESHOLD = 0.90  # of its own accuracy, that the worse side is to keep
SURE, SURE_NOT = 0.8, 0.2

WILL, WILL_NOT = "will merge", "will not merge"
SIDES = ("first", "second")


def verdict(probability: float, more: int | None, side: int) -> str:
    """P(worse side >= THRESHOLD) in words: at least SURE, at most SURE_NOT, or between.

    `more` images of the `side` (0 or 1) to be labelled then, None where labels would not settle it.
    """
    if probability >= SURE:
        return WILL
    if probability <= SURE_NOT:
        return WILL_NOT
    if more is None:
        return "unclear: too near to 90 % for labels to tell"
    return f"unclear: label {more} more images of the {SIDES[side]} task"


def images_to_label(errors: Errors, method: int, forecast: float, labelled: int) -> int | None:
    """How many more labelled images settle it, if the forecast of the worse side stays as it is.

    The least n for which P(>= THRESHOLD) leaves (SURE_NOT, SURE), minus those labelled already;
    `errors` of forecasts with labels. None where no n that the bank knows does.
    """
    for n in range(max(labelled, int(errors.sizes[0])), int(errors.sizes[-1]) + 1):
        p = reaches(THRESHOLD, forecast, errors.spread(method, 1 / n), errors.shape(1 / n))
        if n > labelled and not SURE_NOT < p < SURE:
            return n - labelled
    return None
