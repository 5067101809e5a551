"""Whose fault it is: an AlgebraError always means that what was handed in cannot be used as it is."""


class AlgebraError(ValueError):
    """The input is unusable: names the module and the reason. Nothing was changed."""
