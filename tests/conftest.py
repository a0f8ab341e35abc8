"""The same examples in every run, so that main is green for everyone or for no one.

`pytest --hypothesis-profile=explore` draws new ones.
"""

from hypothesis import settings

settings.register_profile("explore")
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
