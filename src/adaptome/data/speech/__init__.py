"""Speech with a face: sounds and mouths that are drawn here, clips that are read from files, noise that is mixed in."""
