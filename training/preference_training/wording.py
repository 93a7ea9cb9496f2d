"""How numbers and labels are written, in the terminal and in the report alike. Measures nothing."""

from preference_training.statistics import Estimate


def spread(estimate: Estimate | None, digits: int = 4) -> str:
    """Value and half of the interval: `0.9150 ±0.0310`, `±n/a` where none can be given; empty without a value."""
    if estimate is None:
        return ""
    value = f"{estimate.value:.{digits}f}"
    if estimate.is_exact:
        return value
    if estimate.low is None or estimate.high is None:
        return f"{value} ±n/a"
    return f"{value} ±{(estimate.high - estimate.low) / 2:.{digits}f}"


def bounds(estimate: Estimate, digits: int = 4) -> str:
    """Value and interval: `0.9150 (0.8840 to 0.9460)`."""
    value = f"{estimate.value:.{digits}f}"
    return value if estimate.is_exact else f"{value} ({interval(estimate, digits)})"


def interval(estimate: Estimate, digits: int = 4, percent: bool = False) -> str:
    """The interval alone: `0.8840 to 0.9460`, or in percent `88.4% to 94.6%`."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    form = f".{digits}%" if percent else f".{digits}f"
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def share(estimate: Estimate | None) -> str:
    """A share and its interval in whole percent: `63% (55-70)`; empty without a value."""
    if estimate is None:
        return ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%} (n/a)"
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})"


def outcome(label: str) -> str:
    """`winner_model_a` as people say it."""
    return label.removeprefix("winner_").replace("model_a", "A wins").replace("model_b", "B wins")
