"""How the properties here are tested: the same examples every time, however long one takes on a busy machine."""

from hypothesis import settings

steady = settings(deadline=None, derandomize=True, database=None)
