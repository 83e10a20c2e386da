"""One family of errors for everything a user can get wrong."""


class CDRLError(Exception):
    """Base of all errors this package raises on bad input; the text is one line."""


class ConfigError(CDRLError, ValueError):
    """A configuration has an unknown key, a value out of range, or an unknown class."""


class CheckpointError(CDRLError, OSError):
    """A model folder or file is missing, damaged, foreign or of a newer format."""


class InputError(CDRLError, ValueError):
    """An argument of a call is unknown, out of range or of the wrong shape."""


class NumericalError(CDRLError, ArithmeticError):
    """A computation left the finite numbers (NaN or infinity)."""
