"""Property tests draw the same examples every time and leave no files behind."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("unit")
