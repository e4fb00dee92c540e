"""The model: plain nn.Modules, arithmetic only (paper 2.1).

Glossary of the dimension words in shape annotations:

    batch            rows of token ids
    tokens           positions along a row
    written          those of them that come out: all, or the last alone
    images           pictures of the whole batch, in row-major order of their slots
    side             pixels along one side of a picture
    patches          patches of one picture, row by row from the top left
    queries          visual tokens of one picture
    vision_width     channels of a patch
    hidden           channels of a token
    width            channels of whatever is normalised
    heads head       attention heads, channels of one head
    vocab            rows of the output head
    keys             positions that may be attended to: cached tokens and new ones
"""
