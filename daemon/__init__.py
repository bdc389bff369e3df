"""Postsale: the after-sales mailbox that answers itself, with the staff's OK."""

__version__ = "0.1.0"
