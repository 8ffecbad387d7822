"""A store of fields: units of rows written once, whatever crashes, and read by any Zarr reader."""

from pipeline.store.create import create_store as create_store
from pipeline.store.create import extend_store as extend_store
from pipeline.store.create import load_plan as load_plan
from pipeline.store.create import require_same_keys as require_same_keys
from pipeline.store.finalize import finalize as finalize
from pipeline.store.finalize import store_hash as store_hash
from pipeline.store.probe import check_nonce as check_nonce
from pipeline.store.probe import leave_nonce as leave_nonce
from pipeline.store.probe import probe_storage as probe_storage
from pipeline.store.progress import Progress as Progress
from pipeline.store.progress import progress as progress
from pipeline.store.reader import StoreReader as StoreReader
from pipeline.store.reader import open_arrays as open_arrays
from pipeline.store.retry import is_retry as is_retry
from pipeline.store.retry import merge_unit as merge_unit
from pipeline.store.retry import retry_rows as retry_rows
from pipeline.store.retry import rows_to_fit as rows_to_fit
from pipeline.store.verify import VerifyReport as VerifyReport
from pipeline.store.verify import repair as repair
from pipeline.store.verify import verify as verify
from pipeline.store.verify import verify_unit as verify_unit
from pipeline.store.write import StagingGone as StagingGone
from pipeline.store.write import UnitOutcome as UnitOutcome
from pipeline.store.write import UnitResult as UnitResult
from pipeline.store.write import publish_unit as publish_unit
from pipeline.store.write import write_unit as write_unit
