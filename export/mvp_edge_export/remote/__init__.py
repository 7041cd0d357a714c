"""Other machines through ssh: ``host.connect`` is the door, ``bench.bench_on`` goes through it."""
