"""5.1.9.5: network devices that carry out newer commands wrongly."""

from __future__ import annotations

from uvirtio.spec import features as f

from . import Mutants, around
from .net import with_features

N = f.Net
RSS = {"rss_max_key_size": 40, "rss_max_indirection_table_length": 128, "supported_hash_types": 1}
COALESCES = with_features(N.VQ_NOTF_COAL)
COUNTS = with_features(N.DEVICE_STATS)
TUNNELS = with_features(N.RSS, N.HASH_TUNNEL, pairs=2, config_length=28, tunnel_types=1 << 7, **RSS)
CONTEXTS = with_features(N.RSS, N.RSS_CONTEXT, **RSS)

MUTANTS = Mutants(COALESCES)


@MUTANTS.of("D-NET-23")
def coalesces_for_any_queue(device):
    device.model.later._of_frames = lambda queue: queue < 3


@MUTANTS.of("D-NET-24", on=COUNTS)
def looks_at_the_first_entry(device):
    later = device.model.later
    around(later, "statistics", lambda before, command, data: before(command, data[:16]))


@MUTANTS.of("D-NET-25", on=TUNNELS)
def tunnels_outlive_a_reset(device):
    later = device.model.later

    def reset(before):
        kept = later.tunnels
        before()
        later.tunnels = kept

    around(later, "reset", reset)


@MUTANTS.of("D-NET-26", on=CONTEXTS)
def contexts_outlive_a_reset(device):
    device.model.later.reset = lambda: None
