"""Marks that other engines made: their configurations, as marks of ours that every test takes.

What an engine computes is in `watermark.schemes.engines`; here its configuration is read.
"""

from __future__ import annotations

from verify.profiles.configuration import ENGINES, Profile, import_mark, read_profile

__all__ = ["ENGINES", "Profile", "import_mark", "read_profile"]
