"""How hypothesis behaves while code is mutated (`-p tests.mutation_profile`): few and fixed examples."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "mutation", max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("mutation")
