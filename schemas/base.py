"""The two things every schema builds on: a strict frozen model, and where an object store is."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

SCHEMES = ("file", "s3", "memory", "http", "https")


class Schema(BaseModel):
    """Frozen; an unknown key is an error; the docstring under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    LATER: ClassVar[tuple[str, ...]] = ()
    """Keys that came after stores had been made."""

    def deciding(self) -> dict[str, Any]:
        """The keys, as JSON, that decide what is made: those of `LATER` are left out at their
        default, so that a store from before them stays what the same run file means."""
        fields = type(self).model_fields
        kept = self.model_dump(mode="json")
        for key in self.LATER:
            if getattr(self, key) == fields[key].get_default(call_default_factory=True):
                del kept[key]
        return kept


class Location(Schema):
    """An object store and a prefix in it; a bare string is read as its URL.

    Holds no credential: keys come from the environment (or the named profile) of the process
    that opens the location.
    """

    url: str
    """`s3://bucket/prefix/`, `file:///folder/`, a plain path, `memory://name/`, `http(s)://...`;
    of a dataset also `sample:NAME`."""
    endpoint: str | None = None
    """Address of an S3-compatible server, e.g. `https://minio.lab:9000`; AWS when absent."""
    region: str | None = None
    """Region of the bucket; `AWS_REGION` or us-east-1 when absent."""
    profile: str | None = None
    """Section of the AWS credentials file to use."""
    anonymous: bool = False
    """Send unsigned requests (public buckets)."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not url.strip():
            raise ValueError("the URL is empty")
        if "://" not in url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"scheme '{parts.scheme}' is not one of {', '.join(SCHEMES)}")
        if parts.password is not None or parts.username:
            raise ValueError("keys must not stand in a URL; set AWS_ACCESS_KEY_ID and so on")
        if parts.scheme in ("s3", "http", "https") and not parts.netloc:
            what = "bucket" if parts.scheme == "s3" else "server"
            raise ValueError(f"'{url}' names no {what}: write {parts.scheme}://{what.upper()}/...")
        return url

    @property
    def scheme(self) -> str:
        if self.url.startswith("sample:"):
            return "sample"
        return urlsplit(self.url).scheme if "://" in self.url else "file"

    def at(self, suffix: str) -> Location:
        """The location `suffix` below this one, with the same endpoint and profile."""
        return Location(**{**self.location_fields(), "url": self.url.rstrip("/") + "/" + suffix})

    def location_fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Location.model_fields}


def identity(value: Any) -> str:
    """sha256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
