"""The model: plain nn.Modules, arithmetic only (paper 2.1).

Glossary of the dimension words in shape annotations:

    batch            rows of token ids
    tokens           positions along a row
    wanted           tokens of all rows that come out, where not all do
    images           images of the whole batch, in row-major order of their slots
    side             pixels along one side of an image
    patches          patches of one image, row by row from the top left
    queries          visual tokens of one image
    vision_width     channels of a patch
    hidden           channels of a token
    width            channels of whatever is normalised
    heads head       attention heads, channels of one head
    vocab            rows of the output head
    keys             positions that may be attended to: cached tokens and new ones
"""
