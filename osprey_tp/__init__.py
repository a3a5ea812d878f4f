"""osprey_tp: ask about regions of high-resolution images, and train models that answer."""
