"""The block driver against a model, on a scripted disk: any order of calls, of answers, any shape of queue."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bodies import blk_model
from tests.unit.drivers.test_blk import driven
from uvirtio.scripted.blk import FEATURES, Shuffling
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE


@settings(max_examples=60)
@given(
    what=blk_model.acts,
    seed=st.integers(0, 1 << 16),
    depth=st.sampled_from([1, 2, 16]),
    queues=st.integers(1, 3),
    indirect=st.booleans(),
)
def test_a_scripted_disk_is_what_the_model_says(
    what: list[blk_model.Act], seed: int, depth: int, queues: int, indirect: bool
) -> None:
    features = FEATURES | f.mask(f.Blk.MQ) | f.mask(f.VERSION_1, f.EVENT_IDX)
    model = Shuffling(seed, features=features, queues=3)
    if indirect:
        features |= f.mask(f.INDIRECT_DESC)
    options = {"allow_write": True, "depth": depth, "queues": queues, "request_size": 40 * SECTOR_SIZE}
    with driven(model, features=features, vectors=4, **options) as (scripted, _, blk):
        fetch = scripted.fetch

        def shuffled(queue: int) -> int:
            count = fetch(queue)
            model.let_go(len(model.kept))
            return count

        scripted.fetch = shuffled  # type: ignore[method-assign]

        def look(sector: int, sectors: int) -> bytes:
            return bytes(model.content[sector * SECTOR_SIZE : (sector + sectors) * SECTOR_SIZE])

        blk_model.play(blk, what, look)
