"""The certificate authority and the certificates of the state API."""
