"""How much of a message is looked at. Beyond a cap the rest is left out and a defect says so."""

from __future__ import annotations

from typing import Final

RAW_BYTES: Final = 25 * 1024 * 1024  # the rest of a longer message is not parsed
HEADER_BYTES: Final = 256 * 1024  # all fields of one header together
FIELD_BYTES: Final = 16 * 1024  # one field, folded
FIELDS: Final = 1000
ADDRESSES: Final = 200  # per field
PARAMETERS: Final = 64  # per Content-Type or Content-Disposition
DEPTH: Final = 20  # nesting of multiparts and messages
PARTS: Final = 500
TEXT_CHARS: Final = 1024 * 1024  # decoded text of a message
TEXT_BYTES: Final = 6 * 1024 * 1024  # encoded bytes of one text part; more than its decoded cap can hold
HTML_BYTES: Final = 512 * 1024
TNEF_BYTES: Final = 4 * 1024 * 1024
REPORT_CHARS: Final = 64 * 1024
