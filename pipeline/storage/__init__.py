"""One description of an object store, opened as obstore or fsspec clients with the same keys."""

from __future__ import annotations

from pipeline.storage.clients import fsspec_client as fsspec_client
from pipeline.storage.clients import local_folder as local_folder
from pipeline.storage.clients import obstore_client as obstore_client
from pipeline.storage.errors import StorageError as StorageError
from pipeline.storage.errors import explain as explain
from pipeline.storage.local import LocalObjects as LocalObjects
from pipeline.storage.objects import Buffer as Buffer
from pipeline.storage.objects import Entry as Entry
from pipeline.storage.objects import Objects as Objects
from pipeline.storage.settings import endpoint_of as endpoint_of
from pipeline.storage.settings import region_of as region_of
from schemas.base import Location


def open_objects(location: Location) -> Objects:
    """Opens a location for whole objects; nothing is contacted yet (but credentials are found)."""
    return LocalObjects(location) if location.scheme == "file" else Objects(location)
