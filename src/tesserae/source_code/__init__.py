"""What code computes: which modules a result comes from, and a hash of them that words do not change."""

from tesserae.source_code.fingerprint import code_of

__all__ = ["code_of"]
