"""The version of the arithmetic that makes maps, as one number.

``ARITHMETIC_VERSION`` must be raised whenever a change may alter a byte of any map, score or class that was right
before: here (methods, targets, passes, replicas), and in ``jobs`` on the way from a file to the model's input and from
the map to the store (decoding, orientation, resizing, padding of batches, scales). A store of
another version is continued only if the user accepts that, so the number is not raised if a change only affects what
was refused, crashed or was wrong before.
"""

ARITHMETIC_VERSION = 1
