"""The delta file: read, check and write it; read `deltas.format.delta_file` first.

`deltas.format.content` reads a file's bytes and header, of which nothing is trusted, and
`deltas.format.atomic_write` writes files in one step.
"""

from deltas.format.atomic_write import make_public as make_public
from deltas.format.atomic_write import write_atomically as write_atomically
from deltas.format.content import SUFFIX as SUFFIX
from deltas.format.content import read_content as read_content
from deltas.format.delta_file import HEAD_BIAS as HEAD_BIAS
from deltas.format.delta_file import HEAD_WEIGHT as HEAD_WEIGHT
from deltas.format.delta_file import check_backbone as check_backbone
from deltas.format.delta_file import check_delta as check_delta
from deltas.format.delta_file import check_fit as check_fit
from deltas.format.delta_file import content_digest as content_digest
from deltas.format.delta_file import most_bytes as most_bytes
from deltas.format.delta_file import parse_delta as parse_delta
from deltas.format.delta_file import read_delta as read_delta
from deltas.format.delta_file import read_manifest as read_manifest
from deltas.format.delta_file import write_delta as write_delta
