"""The architectures that Hotset runs, as one table: add a row to add an architecture.

A row says what a model family's files call things and which of the decoder's options it takes. It knows
nothing of how files are read: `hotset.formats` does that, and refuses whatever a row does not describe.
"""

from hotset.architectures.delta_nets import DELTA_NETS
from hotset.architectures.dense import DENSE
from hotset.architectures.gemmas import GEMMAS
from hotset.architectures.granite_hybrids import GRANITE_HYBRIDS
from hotset.architectures.latent import LATENT
from hotset.architectures.likenesses import LIKENESSES
from hotset.architectures.mixtures import MIXTURES
from hotset.architectures.more_mixtures import MORE_MIXTURES
from hotset.architectures.row import Architecture
from hotset.architectures.short_convs import SHORT_CONVS
from hotset.architectures.single_parts import SINGLE_PARTS

ARCHITECTURES: tuple[Architecture, ...] = (
    *DENSE,
    *LIKENESSES,
    *GEMMAS,
    *MIXTURES,
    *MORE_MIXTURES,
    *LATENT,
    *DELTA_NETS,
    *SHORT_CONVS,
    *SINGLE_PARTS,
    *GRANITE_HYBRIDS,
)
