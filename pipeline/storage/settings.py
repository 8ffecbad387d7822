"""Where an S3 location is served: from the location, the environment, or the AWS profile."""

from __future__ import annotations

import os
from typing import Any

from schemas.base import Location


def session_of(location: Location) -> Any:
    """The botocore session of a location's profile."""
    import botocore.session

    return botocore.session.Session(profile=location.profile)


def _profile_setting(location: Location, name: str) -> str | None:
    """A setting of the profile; absent profiles are reported when credentials are looked up."""
    if location.profile is None and "AWS_PROFILE" not in os.environ:
        return None
    return session_of(location).full_config.get("profiles", {}).get(
        location.profile or os.environ["AWS_PROFILE"], {}
    ).get(name)  # fmt: skip


def endpoint_of(location: Location) -> str | None:
    """Address of the S3 server: the location's, the environment's, the profile's, or AWS (None)."""
    return (
        location.endpoint
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _profile_setting(location, "endpoint_url")
    )


def region_of(location: Location) -> str:
    """Region of the bucket: the location's, the environment's, the profile's, or us-east-1."""
    return (
        location.region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or _profile_setting(location, "region")
        or "us-east-1"
    )
