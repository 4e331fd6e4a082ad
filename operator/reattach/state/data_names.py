"""Names of keys and external jobs in the ConfigMap's data: valid for Kubernetes, and unique."""

import hashlib
import re

DATA_NAME_MAX = 253
"""Kubernetes' limit for a name in a ConfigMap's data."""

KEY_NAMES = ("key.", "key-escaped.", "key-hashed.")
JOB_NAMES = ("job.", "job-escaped.", "job-hashed.")
_PLAIN_KEY = re.compile(r"[-._A-Za-z0-9]+")
_TO_ESCAPE = re.compile(rb"[^-.A-Za-z0-9]")


def data_name_of(key: str) -> str:
    """Return the name of a key in the data."""
    return _name_of(KEY_NAMES, "", key)


def job_name_of(key: str, generation: int) -> str:
    """Return the name of one generation of an external job in the data."""
    return _name_of(JOB_NAMES, f"{generation}.", key)


def _name_of(names: tuple[str, str, str], prefix: str, key: str) -> str:
    plain, escaped, hashed = (name + prefix for name in names)
    if _PLAIN_KEY.fullmatch(key) and len(name := plain + key) <= DATA_NAME_MAX:
        return name
    text = _TO_ESCAPE.sub(lambda byte: b"_%02X" % byte[0][0], key.encode())
    if len(name := escaped + text.decode()) <= DATA_NAME_MAX:
        return name
    return hashed + hashlib.sha256(key.encode()).hexdigest()
