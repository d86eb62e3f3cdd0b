"""5.1: network devices that are wrong."""

from __future__ import annotations

from uvirtio.scripted import Net, ScriptedDevice
from uvirtio.scripted.net import FEATURES
from uvirtio.spec import features as f
from uvirtio.spec.net import CONTROLQ, TRANSMITQ, Control

from . import Mutants, around

MUTANTS = Mutants("scripted:net")
N = f.Net


def with_features(*bits, **fields):
    """A card with more features, and fields of its configuration."""
    return lambda: ScriptedDevice(Net(features=FEATURES | f.mask(*bits), **fields), address="scripted:net")


HASHES = with_features(N.RSS, N.HASH_REPORT, rss_max_key_size=40, rss_max_indirection_table_length=128)


@MUTANTS.of("D-NET-01", on=with_features(N.MQ))
def no_pairs(device):
    device.model.put("max_virtqueue_pairs", 0)


@MUTANTS.of("D-NET-02", on=with_features(N.MTU))
def tiny_mtu(device):
    device.model.put("mtu", 67)


def follows_traffic(device, field, least):
    """Each frame that is sent changes a field of the configuration."""
    around(
        device.model,
        "_send",
        lambda before, *what: (before(*what), device.model.put(field, least + len(device.model.sent)))[0],
    )


@MUTANTS.of("D-NET-03", on=with_features(N.MTU))
def mtu_follows_traffic(device):
    follows_traffic(device, "mtu", 1400)


@MUTANTS.of("D-NET-04", on=HASHES)
def short_key(device):
    device.model.put("rss_max_key_size", 39)


@MUTANTS.of("D-NET-05", on=HASHES)
def short_table(device):
    device.model.put("rss_max_indirection_table_length", 127)


@MUTANTS.of("D-NET-06", on=with_features(N.SPEED_DUPLEX))
def half_known_duplex(device):
    device.model.put("duplex", 2)


@MUTANTS.of("D-NET-07", on=with_features(N.SPEED_DUPLEX))
def speed_follows_traffic(device):
    follows_traffic(device, "speed", 0)


@MUTANTS.of("D-NET-08", "D-NET-09")
def no_control_queue(device):
    device.model.features &= ~f.mask(N.CTRL_VQ)
    device.offered &= ~f.mask(N.CTRL_VQ)


def drops(device, when):
    """Frames to send of which ``when(header)`` holds do not arrive."""

    def send(before, queue, chain):
        header = chain.data()[: device.model.header_size]
        return 0 if when(header) else before(queue, chain)

    around(device.model, "_send", send)


@MUTANTS.of("D-NET-10")
def drops_unknown_flags(device):
    drops(device, lambda header: header[0] & 0x80)


@MUTANTS.of("D-NET-11")
def trusts_hdr_len(device):
    drops(device, lambda header: int.from_bytes(header[2:4], "little") > 1500)


@MUTANTS.of("D-NET-13")
def leaves_num_buffers_alone(device):
    around(
        device.model,
        "inject",
        lambda before, *frames, **how: (
            setattr(device.model, "num_buffers", None if device.model.has(N.MRG_RXBUF) else 0),
            before(*frames, **how),
        )[1],
    )


@MUTANTS.of("D-NET-14")
def fills_half(device):
    model = device.model

    def complete(before, queue, chain, written=0, **how):
        whole = queue != TRANSMITQ and written == chain.room
        before(queue, chain, written // 2 if whole else written, **how)

    def send(before, queue, chain):
        return before(queue, chain)

    around(device, "complete", complete)
    around(model, "_send", send)


@MUTANTS.of("D-NET-15")
def data_is_valid(device):
    device.model.header_flags = 2


def refuses(device, kind, command):
    """ERR for one command."""
    around(
        device.model,
        "_carry_out",
        lambda before, asked, what, data: (asked, what) != (kind, command) and before(asked, what, data),
    )


@MUTANTS.of("D-NET-16")
def no_all_multicast(device):
    refuses(device, Control.RX, 1)


@MUTANTS.of("D-NET-17")
def hides_its_address(device):
    def carry_out(before, kind, command, data):
        return kind is Control.MAC or before(kind, command, data)

    around(device.model, "_carry_out", carry_out)


@MUTANTS.of("D-NET-18")
def keeps_its_table(device):
    """As after a reset, so before it: the first command is remembered."""
    model, kept = device.model, set()
    around(model, "reset", lambda reset: (kept.update(model.table), reset(), model.table.update(kept)))


@MUTANTS.of("D-NET-19")
def tags_without_a_table(device):
    model = device.model
    around(model, "takes", lambda takes, frame: frame[12:14] != b"\x81\0" and takes(frame))


@MUTANTS.of("D-NET-21", on=with_features(N.MQ, pairs=2))
def pairs_outlive_a_reset(device):
    def reset(before):
        used = device.model.used_pairs
        before()
        device.model.used_pairs = used

    around(device.model, "reset", reset)


TWO_HASHED = with_features(
    N.RSS,
    pairs=2,
    rss_max_key_size=40,
    rss_max_indirection_table_length=128,
    supported_hash_types=1,
)


@MUTANTS.of("D-NET-22", on=TWO_HASHED)
def hashes_destination_first(device):
    def queue_of(before, frame):
        return before(frame[:26] + frame[30:34] + frame[26:30] + frame[34:])

    around(device.model, "queue_of", queue_of)


@MUTANTS.of("D-NET-20")
def goes_on_asking(device):
    def carry_out(before, kind, command, data):
        return kind is Control.ANNOUNCE or before(kind, command, data)

    around(device.model, "_carry_out", carry_out)


@MUTANTS.of("D-NET-27")
def knows_every_class(device):
    def handle(before, queue, chain):
        if queue == CONTROLQ:
            device.model.ack = 0 if chain.data()[0] > Control.GUEST_OFFLOADS else None
        return before(queue, chain)

    around(device.model, "handle", handle)
