"""What durable dicts cost, as ratios measured in one run: `python -m benchmarks`."""
