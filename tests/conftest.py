from hypothesis import settings

settings.register_profile("trautoml", derandomize=True, deadline=None)
settings.load_profile("trautoml")
