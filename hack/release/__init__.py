"""Steps of `hack/package`, whose bytes depend only on the commit and the tools."""
