"""The state API: a stateless HTTPS service for task pods, with any number of replicas."""
