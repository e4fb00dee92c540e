"""Chinese nouns that begin as their English ones: what is learned of either is learned of both."""

import torch
import torch.nn.functional as F

from qwenvl.data.drawings.splits import nouns
from qwenvl.model.llm import LLM
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.alignment import Spoken

ALIKE, OWN = 0.95, 0.3
"""How much of an embedding is that of the English noun, and how much is the same for all Chinese ones."""

ALIKE_SAID, OWN_SAID = 0.8, 0.3
"""The same of what the head compares with: which of both is said stays to be learned."""


@torch.no_grad()
def init_translations_(llm: LLM, tokenizer: Tokenizer, generator: torch.Generator) -> None:
    """Let every Chinese noun of drawings that is one token begin as the English noun.

    Look-ups in English then find Chinese nouns too, and visual tokens that say English nouns say Chinese ones. Raises
    ValueError for a vocabulary that has no token for any.
    """
    pairs = {
        ids[0]: f" {noun.noun}"
        for noun in nouns()
        if noun.zh and len(ids := tokenizer.encode(noun.zh[0])) == 1
    }
    if not pairs:
        raise ValueError(
            "the recipe says translations, and its vocabulary has no token for any Chinese noun of drawings; make one "
            "with Tokenizer.with_words, or leave it out."
        )
    chinese, english = torch.tensor(list(pairs)), list(pairs.values())
    begins = torch.tensor([tokenizer.encode(noun)[0] for noun in english])
    shared = F.normalize(torch.randn(2, llm.config.hidden, generator=generator), dim=1)
    rows, said = llm.embed.weight, llm.head.weight
    length, said_length = (each.norm(dim=1).mean() for each in (rows, said))
    rows[chinese] = length * (ALIKE * Spoken(tokenizer, llm.embed)(english) + OWN * shared[0])
    said[chinese] = ALIKE_SAID * said[begins] + OWN_SAID * said_length * shared[1]
