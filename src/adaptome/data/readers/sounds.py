"""Sound folders: one subfolder per class, with or without a folder per split above.

Speech Commands' own lists are understood: `validation_list.txt` and `testing_list.txt` beside the class folders name
the files of these splits, and `_background_noise_` is then no class.
"""

from __future__ import annotations

from adaptome.data.readers.folders import FolderKind

ENDINGS = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff"})
LISTED = (("validation", "validation_list.txt"), ("test", "testing_list.txt"))
# Headers are read by the task, for clips from any source.
SOUNDS = FolderKind("audiofolder", "audio", "sounds", ENDINGS, None, LISTED)
