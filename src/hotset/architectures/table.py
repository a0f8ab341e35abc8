"""The architectures that Hotset runs, as one table: add a row to add an architecture.

A row says what a model family's files call things and which of the decoder's options it takes. It knows
nothing of how files are read: `hotset.formats` does that, and refuses whatever a row does not describe.
"""

from hotset.architectures.delta_nets import DELTA_NETS
from hotset.architectures.dense import DENSE
from hotset.architectures.gemmas import GEMMAS
from hotset.architectures.latent import LATENT
from hotset.architectures.leading_dense import LEADING_DENSE
from hotset.architectures.llama_variants import LLAMA_VARIANTS
from hotset.architectures.mamba import MAMBA
from hotset.architectures.mixtures import MIXTURES
from hotset.architectures.row import Architecture
from hotset.architectures.short_convs import SHORT_CONVS

ARCHITECTURES: tuple[Architecture, ...] = (
    *DENSE,
    *LLAMA_VARIANTS,
    *GEMMAS,
    *MIXTURES,
    *LEADING_DENSE,
    *LATENT,
    *DELTA_NETS,
    *SHORT_CONVS,
    *MAMBA,
)
