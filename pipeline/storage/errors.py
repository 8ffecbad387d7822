"""What storage does wrong, in one sentence each."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pipeline.storage.settings import endpoint_of
from schemas.base import Location


class StorageError(RuntimeError):
    """The world's fault: bucket, credentials, network, disk. One sentence; run again later."""


REFUSED = {
    "InvalidAccessKeyId": "the access key is unknown there",
    "SignatureDoesNotMatch": "the secret key does not match",
    "AccessDenied": "access is denied",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is invalid",
}


def explain(location: Location, action: str, key: str, error: Exception) -> str:
    """One line that says what storage refused and what to look at."""
    text = str(error)
    where = location.url
    server = endpoint_of(location) if location.scheme == "s3" else None
    at = f" at {server}" if server else ""
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found.group(1) if found else ""
    status = re.search(r"status code: (\d{3})", text)
    if code == "NoSuchBucket":
        return f"{where}: there is no bucket '{urlsplit(where).netloc}'{at}"
    if code in REFUSED or (status and status.group(1) in ("401", "403")):
        reason = REFUSED.get(code, code or "not authorised")
        profile = f"profile '{location.profile}'" if location.profile else "AWS_ACCESS_KEY_ID"
        return f"{where}: cannot {action} '{key}'{at}: {reason}; check {profile} and the policy"
    if "error sending request" in text or "error trying to connect" in text:
        return (
            f"{where}: the server{at or ' of AWS S3'} cannot be reached (cannot {action} '{key}')"
        )
    first = text.split("\n", 1)[0]
    return f"{where}: cannot {action} '{key}': {first[:300]}"
