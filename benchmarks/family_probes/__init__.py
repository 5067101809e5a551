"""The ten families of probes; benchmarks.families runs them."""
