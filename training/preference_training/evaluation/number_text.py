"""How numbers and labels are written, in the terminal and in the report alike. Measures nothing."""

from preference_training.statistics.intervals import FEWEST_ROWS, LEVEL, Estimate

#: Where no interval can be given, and why, in words that go below a table or a page.
NO_INTERVAL = "n/a"
WHY_NO_INTERVAL = f"{NO_INTERVAL}: fewer than {FEWEST_ROWS} battles, or all alike, do not tell how sure a mean is"
#: How `spread` shows intervals, in words that go below a table.
HOW_SPREAD = f"±: half of the {100 * LEVEL:.0f} % interval; two numbers: its bounds, where it is not symmetric"

#: How far the value may be from the middle of a symmetric interval, as a share of half its width.
_ASYMMETRY = 0.2


def spread(estimate: Estimate | None, digits: int = 4) -> str:
    """Value and interval in few columns; empty without a value.

    `0.9150 ±0.0310` where the interval is symmetric: the value is in its middle, within a fifth of half its width.
    Otherwise the bounds are on a second line: `0.0430`, `0.0110 to 0.0920`. `0.9150 n/a` where there is none.
    """
    if estimate is None:
        return ""
    value = f"{estimate.value:.{digits}f}"
    if estimate.is_exact:
        return value
    if estimate.low is None or estimate.high is None:
        return f"{value} {NO_INTERVAL}"
    half, middle = (estimate.high - estimate.low) / 2, (estimate.high + estimate.low) / 2
    if abs(estimate.value - middle) <= _ASYMMETRY * half:
        return f"{value} ±{half:.{digits}f}"
    return stacked(estimate, digits)


def stacked(estimate: Estimate | None, digits: int = 4) -> str:
    """Value and, on a second line, its bounds, for numbers with skewed intervals; empty without a value."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return spread(estimate, digits)
    return f"{estimate.value:.{digits}f}\n{interval(estimate, digits)}"


def bounds(estimate: Estimate, digits: int = 4) -> str:
    """Value and interval: `0.9150 (0.8840 to 0.9460)`."""
    value = f"{estimate.value:.{digits}f}"
    return value if estimate.is_exact else f"{value} ({interval(estimate, digits)})"


def interval(estimate: Estimate, digits: int = 4, percent: bool = False) -> str:
    """The interval alone: `0.8840 to 0.9460`, or in percent `88.4% to 94.6%`."""
    if estimate.low is None or estimate.high is None:
        return NO_INTERVAL
    form = f".{digits}%" if percent else f".{digits}f"
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def share(estimate: Estimate | None) -> str:
    """A share and its interval in whole percent: `63% (55-70)`; empty without a value."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%} ({NO_INTERVAL})"
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})"


def outcome(label: str) -> str:
    """`winner_model_a` as people say it."""
    return label.removeprefix("winner_").replace("model_a", "A wins").replace("model_b", "B wins")
