"""Steps of `hack/package`: each writes files whose bytes depend only on the commit and the tools."""
