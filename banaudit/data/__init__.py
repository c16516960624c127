"""Clean samples: from a folder of images to tensors, and from one set to disjoint parts.

:func:`read_clean_folder` finds, labels, draws and reads the files; :meth:`ImageSet.decode` makes tensors of one size of
them; :class:`CleanData` is what every detector gets.
"""

from banaudit.data.batching import batches, images_of_a_pass, passes
from banaudit.data.clean import CleanData
from banaudit.data.images import ImageSet, Unreadable
from banaudit.data.reader import read_clean_folder

__all__ = ["CleanData", "ImageSet", "Unreadable", "batches", "images_of_a_pass", "passes", "read_clean_folder"]
