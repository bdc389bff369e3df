"""What can go wrong with models and labelled data, as the caller has to tell it apart."""

from __future__ import annotations


class ModelRefused(Exception):
    """A model file is missing, foreign, damaged, truncated, unsigned or of another version; nothing of it was used."""


class DataRefused(Exception):
    """Labelled data that cannot be trained from or judged on; the message names the place and the mend."""
