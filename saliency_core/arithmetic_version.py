"""The version of this program's arithmetic, in one number.

``ARITHMETIC_VERSION`` must be raised whenever a change may alter a byte of any map, score or class that was right
before: here (methods, targets, passes, replicas), and in ``jobs`` on the way from a file to the model's input and from
the map to the store (decoding, orientation, resizing, padding of batches, scales). A store is not gone on with by
another version unless that is accepted, so it is not raised for what only was refused, crashed or wrong before.
"""

ARITHMETIC_VERSION = 1
