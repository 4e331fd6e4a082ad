"""The state API: an HTTPS service that task pods call. Stateless; any number of replicas may run side by side."""
