"""banaudit audits image classifiers that somebody else trained."""

__version__ = "0.1.0"
