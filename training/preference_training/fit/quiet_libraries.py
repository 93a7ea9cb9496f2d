"""Another name of `preference_core.quiet_libraries`, for the benchmarks."""

from preference_core.quiet_libraries import quiet_transformers

__all__ = ["quiet_transformers"]
